"""The registry of layouts. To add one, write its file and list it here."""

from collections.abc import Mapping
from typing import Any

from threadloom.stages.layouts.gpt2 import Gpt2Layout
from threadloom.stages.layouts.gpt2_banded import Gpt2BandedLayout
from threadloom.stages.layouts.gpt2_residues import Gpt2ResidueLayout
from threadloom.stages.layouts.layout import Layout
from threadloom.stages.layouts.llama import LlamaLayout
from threadloom.stages.models import Geometry

LAYOUTS: Mapping[str, Layout[Any]] = {"gpt2": Gpt2Layout(), "llama": LlamaLayout()}
"""Name of the architecture → its arrays and kernels."""
_BANDED = Gpt2BandedLayout()


def layout_of(geometry: Geometry) -> Layout[Any]:
    """Return the arrays and kernels of the architecture that a geometry belongs to."""
    if geometry.residues:
        return Gpt2ResidueLayout(geometry)
    return _BANDED if geometry.bands else LAYOUTS[geometry.architecture]
