"""GPT-2 with a token embedding of low rank by bands, in float32."""

from threadloom.kernels.common import BandedConstants, BandedWeights, bands_of
from threadloom.kernels.float32 import GPT2_BANDED
from threadloom.stages.layouts.gpt2 import Gpt2Layout
from threadloom.stages.models import Geometry


class Gpt2BandedLayout(Gpt2Layout):
    """The arrays and kernels of GPT-2 with other ones for the output projection. Implements `Layout`."""

    weights = BandedWeights
    of_head = frozenset({"lnf_weight", "lnf_bias", "wte_rows", "wte_bases"})
    kernels = GPT2_BANDED

    def constants(self, geometry: Geometry) -> BandedConstants:
        """Return the constants of a GPT-2, and the bands."""
        plain = super().constants(geometry)
        return BandedConstants(plain.heads, plain.lora, bands_of(geometry.bands, geometry.channels))
