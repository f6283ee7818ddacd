"""The registry of layouts in 16 bits. To add one, write its file and list it here."""

from collections.abc import Mapping
from typing import Any

from threadloom.stages.layouts.bits16.gpt2 import Gpt2Bits16Layout
from threadloom.stages.layouts.bits16.gpt2_banded import Gpt2BandedBits16Layout
from threadloom.stages.layouts.bits16.gpt2_residues import Gpt2ResidueBits16Layout
from threadloom.stages.layouts.bits16.layout import Bits16Layout
from threadloom.stages.layouts.bits16.llama import LlamaBits16Layout
from threadloom.stages.models import Geometry

BITS16_LAYOUTS: Mapping[str, Bits16Layout[Any]] = {"gpt2": Gpt2Bits16Layout(), "llama": LlamaBits16Layout()}
"""Name of the architecture → its arrays and kernels in 16 bits."""
_BANDED = Gpt2BandedBits16Layout()


def bits16_layout_of(geometry: Geometry) -> Bits16Layout[Any]:
    """Return the arrays and kernels, in 16 bits, of the architecture that a geometry belongs to."""
    if geometry.residues:
        return Gpt2ResidueBits16Layout(geometry)
    return _BANDED if geometry.bands else BITS16_LAYOUTS[geometry.architecture]
