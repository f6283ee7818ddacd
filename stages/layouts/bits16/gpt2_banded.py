"""GPT-2 with a token embedding of low rank by bands, in bfloat16."""

from threadloom.kernels.bits16 import (
    GPT2_BANDED,
    BandedPackedWeights,
    BandedWeights16,
    PackedFactors,
    PackedPair,
    pack_bands,
)
from threadloom.kernels.common import BandedWeights, BandFactors, bands_of, packed_words
from threadloom.stages.layouts.bits16.gpt2 import Gpt2Bits16Layout
from threadloom.stages.models import Geometry


class Gpt2BandedBits16Layout(Gpt2Bits16Layout):
    """The arrays and kernels of GPT-2 with other ones for the output projection. Implements `Bits16Layout`."""

    weights = BandedWeights16
    packed = BandedPackedWeights
    kernels = GPT2_BANDED

    def flat_packed(self, geometry: Geometry) -> dict[str, int]:
        """Return the words of the packed factors."""
        low = [rank for _, rank in geometry.bands if rank < geometry.channels]
        return {
            "wte_rows": sum(packed_words(tokens, rank) for tokens, rank in geometry.bands),
            "wte_bases": sum(packed_words(rank, geometry.channels) for rank in low),
        }

    def pack_flat(self, geometry: Geometry, master: BandedWeights, packed: BandedPackedWeights) -> None:
        """Pack the factors."""
        rows, bases = PackedPair(packed.wte_rows, packed.wte_rows_t), PackedPair(packed.wte_bases, packed.wte_bases_t)
        bands = bands_of(geometry.bands, geometry.channels)
        factors = BandFactors(master.wte_rows, master.wte_bases)
        pack_bands(factors, bands, geometry.channels, PackedFactors(rows, bases))
