"""One table of name and shape, from which everything that holds a model's tensors is made.

The arenas (weights, gradients, AdamW's moments), the initialisation, the optimizer's decay and the checkpoint all read
the same table, so none of them can disagree with another about what a model consists of.
"""

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a GPT-2 model; everything about its tensors follows from these."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.channels


def parameter_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return the shape of every field of `kernels.Weights`, in its order: matrices first, then vectors."""
    v, t, n, c, f = geometry.vocabulary, geometry.context, geometry.layers, geometry.channels, geometry.hidden
    return {
        "wte": (v, c),
        "wpe": (t, c),
        "qkv_weight": (n, c, 3 * c),
        "attn_proj_weight": (n, c, c),
        "fc_weight": (n, c, f),
        "mlp_proj_weight": (n, f, c),
        "ln1_weight": (n, c),
        "ln1_bias": (n, c),
        "qkv_bias": (n, 3 * c),
        "attn_proj_bias": (n, c),
        "ln2_weight": (n, c),
        "ln2_bias": (n, c),
        "fc_bias": (n, f),
        "mlp_proj_bias": (n, c),
        "lnf_weight": (c,),
        "lnf_bias": (c,),
    }


MATRICES = ("wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")
"""The tensors that AdamW's weight decay applies to; they lead the table."""
