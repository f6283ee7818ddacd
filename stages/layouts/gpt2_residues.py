"""GPT-2 whose tokens are sums of residues, in float32."""

from threadloom import kernels
from threadloom.kernels import Floats, TokenIds, Weights
from threadloom.kernels.common import (
    DocumentStarts,
    ResidueConstants,
    Residues,
    residue_embedding_backward,
    residue_softmax_rows,
    residues_of,
)
from threadloom.kernels.float32 import GPT2_RESIDUES, residue_embedding_forward
from threadloom.stages.layouts.gpt2 import Gpt2Layout
from threadloom.stages.models import Geometry


def residues_in(geometry: Geometry) -> Residues:
    """Return the residues of a vocabulary, as the kernels take them."""
    assert geometry.residues is not None
    return residues_of(geometry.vocabulary, geometry.residues.moduli, geometry.residues.own_rows)


class Gpt2ResidueLayout(Gpt2Layout):
    """The arrays and kernels of GPT-2 with others for both ends, which read the factors. Implements `Layout`."""

    kernels = GPT2_RESIDUES

    def __init__(self, geometry: Geometry) -> None:
        self._residues = residues_in(geometry)
        self.softmax_rows = residue_softmax_rows(self._residues, geometry.projection_rows)

    def constants(self, geometry: Geometry) -> ResidueConstants:
        """Return the constants of a GPT-2, and the residues."""
        plain = super().constants(geometry)
        return ResidueConstants(plain.heads, plain.lora, self._residues)

    def embed(self, weights: Weights, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the sum of token and position embeddings."""
        residue_embedding_forward(weights.wte, weights.wpe, self._residues, ids, context, starts, out)

    def scatter_input_gradient(
        self, ids: TokenIds, dx: Floats, context: int, starts: DocumentStarts, gradients: Weights, *, accumulate: bool
    ) -> None:
        """Add the gradient to that of the factors, and write or add it to that of the positions."""
        residue_embedding_backward(ids, dx, self._residues, gradients.wte)
        kernels.embedding_backward(ids, dx, context, starts, gradients.wte[:0], gradients.wpe, accumulate)
