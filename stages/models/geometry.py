"""The sizes of a model, from which the shapes of all its tensors follow."""

from dataclasses import dataclass, field
from typing import ClassVar

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of linear layers (LoRA, Hu et al., 2021); `stages.models.lora` has their tensors."""

    rank: int
    """Rows of the two matrices of an adapter."""
    alpha: float
    """Numerator of the factor of the adapters' products."""
    modules: frozenset[str]
    """Names, within a layer in Hugging Face's layout, of the linear layers that have an adapter."""
    rank_stabilised: bool = False
    """True: the factor is alpha / √rank (rsLoRA), otherwise alpha / rank."""
    dropout: float = 0.0
    """Probability with which an element of an adapter's input is set to 0 in training."""


@dataclass(frozen=True)
class ResidueSizes:
    """The rows of a token embedding that is a sum of residues (`stages.embedding.residues`)."""

    moduli: tuple[int, ...]
    own_rows: int
    """Number of the tokens, the first ones, that have rows of their own."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a GPT-2 model; another architecture derives from it and names itself."""

    architecture: ClassVar[str] = "gpt2"
    """Key of `ARCHITECTURES`."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int
    lora: Lora | None = field(default=None, kw_only=True)
    """Adapters that are trained in addition to the model. None: the model has none."""
    factors: tuple[tuple[str, Shape], ...] = field(default=(), kw_only=True)
    """Names and shapes of the tensors that are trained instead of the token embedding, which is computed from them
    after every update (`stages.embedding`). Empty: the token embedding itself is trained."""
    bands: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)
    """(tokens, rank) of the bands of the vocabulary whose token embedding is a product of two `factors`. Empty: the
    factors are others, or none."""
    residues: ResidueSizes | None = field(default=None, kw_only=True)
    """With residues whose `factors` the kernels read in the place of the token embedding, which does not exist in
    memory. None: the kernels read the embedding."""

    def __str__(self) -> str:
        return (
            f"{self.vocabulary:,} tokens, context {self.context:,}, {self.layers} layers, {self.heads} heads, "
            f"{self.channels:,} channels"
        )

    @property
    def projection_rows(self) -> int:
        """Rows of the matrix of the output projection: one for each token, or the factors of residues."""
        if self.residues is None:
            return self.vocabulary
        return min(self.residues.own_rows, self.vocabulary) + sum(self.residues.moduli)

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the MLP."""
        return 4 * self.channels

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values together."""
        return 3 * self.channels

    @property
    def attn_width(self) -> int:
        """Columns of the heads' outputs together, a multiple of `heads`."""
        return self.channels

    @property
    def key_value_width(self) -> int:
        """Columns of the keys, and of the values."""
        return (self.qkv_width - self.attn_width) // 2


def input_gradient_bytes(geometry: Geometry, sequences: int) -> int:
    """Return the bytes of the gradients of the input embeddings (float32) and of the token ids (int32)."""
    return 4 * sequences * geometry.context * (geometry.channels + 1)
