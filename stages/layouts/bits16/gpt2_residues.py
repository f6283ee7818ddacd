"""GPT-2 whose tokens are sums of residues, in 16 bits."""

from threadloom.kernels import Floats, TokenIds
from threadloom.kernels.bits16 import GPT2_RESIDUES, Weights16, residue_embedding_forward
from threadloom.kernels.common import DocumentStarts
from threadloom.stages.layouts import residues_in
from threadloom.stages.layouts.bits16.gpt2 import Gpt2Bits16Layout
from threadloom.stages.models import Geometry


class Gpt2ResidueBits16Layout(Gpt2Bits16Layout):
    """The arrays and kernels of GPT-2 with others for both ends, which read the factors. Implements `Bits16Layout`."""

    kernels = GPT2_RESIDUES

    def __init__(self, geometry: Geometry) -> None:
        self._residues = residues_in(geometry)

    def packed_fields(self, geometry: Geometry) -> dict[str, str]:
        """Return every matrix but the position embedding; the factors are in the place of the token embedding."""
        fields = super().packed_fields(geometry)
        return {"wte_factors": fields.pop("wte"), **fields}

    def embed(self, weights: Weights16, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the sum of token embeddings, from the packed factors, and position embeddings."""
        residue_embedding_forward(weights.packed.wte, weights.master.wpe, self._residues, ids, context, starts, out)
