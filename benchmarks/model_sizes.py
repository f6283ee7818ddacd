"""The sizes of the models that both sides build, as plain numbers, one class per architecture."""

from typing import ClassVar

import msgspec

from threadloom.stages.models import Geometry, LlamaGeometry, Rotary


class Gpt2Sizes(msgspec.Struct, frozen=True, kw_only=True, tag="gpt2"):
    """A GPT-2 with tied embeddings and learned positions."""

    architecture: ClassVar[str] = "gpt2"
    comparable: ClassVar[bool] = True
    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int

    @classmethod
    def of(cls, geometry: Geometry) -> "Gpt2Sizes":
        """Return the sizes of a geometry."""
        return cls(
            vocabulary=geometry.vocabulary, context=geometry.context, layers=geometry.layers, heads=geometry.heads,
            channels=geometry.channels,
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        c = self.channels
        return (self.vocabulary + self.context) * c + self.layers * (12 * c * c + 13 * c) + 2 * c

    @property
    def multiplied(self) -> int:
        """Parameters that take part in a matrix multiply: all but the positions."""
        return self.parameters - self.context * self.channels

    @property
    def attn_width(self) -> int:
        """Columns of the outputs of all heads."""
        return self.channels


class LlamaSizes(msgspec.Struct, frozen=True, kw_only=True, tag="llama"):
    """A model of the Llama family without biases and with plain rotary positions, which the peer builds too."""

    architecture: ClassVar[str] = "llama"
    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int
    kv_heads: int
    head_size: int
    mlp_width: int
    epsilon: float
    theta: float
    tied: bool
    qk_norm: bool
    comparable: bool
    """False: the model that threadloom trains has biases, or other rotary positions."""

    @classmethod
    def of(cls, geometry: Geometry) -> "LlamaSizes":
        """Return the sizes of a `LlamaGeometry`."""
        assert isinstance(geometry, LlamaGeometry)
        plain = LlamaGeometry(
            vocabulary=geometry.vocabulary, context=geometry.context, layers=geometry.layers, heads=geometry.heads,
            channels=geometry.channels, kv_heads=geometry.kv_heads, head_size=geometry.head_size,
            mlp_width=geometry.mlp_width, epsilon=geometry.epsilon, rotary=Rotary(theta=geometry.rotary.theta),
            tied=geometry.tied, qk_norm=geometry.qk_norm,
        )  # fmt: skip
        sizes = {name: getattr(plain, name) for name in cls.__struct_fields__ if name not in ("theta", "comparable")}
        return cls(**sizes, theta=plain.rotary.theta, comparable=plain == geometry)

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        c, attn, kv = self.channels, self.heads * self.head_size, self.kv_heads * self.head_size
        matrices = c * (attn + 2 * kv) + attn * c + 3 * c * self.mlp_width
        block = matrices + 2 * c + (2 * self.head_size if self.qk_norm else 0)
        return (1 if self.tied else 2) * self.vocabulary * c + self.layers * block + c

    @property
    def multiplied(self) -> int:
        """Parameters that take part in a matrix multiply: all but an embedding that is not tied."""
        return self.parameters - (0 if self.tied else self.vocabulary * self.channels)

    @property
    def attn_width(self) -> int:
        """Columns of the outputs of all heads."""
        return self.heads * self.head_size


ModelSizes = Gpt2Sizes | LlamaSizes
_KINDS: dict[str, type[ModelSizes]] = {kind.architecture: kind for kind in (Gpt2Sizes, LlamaSizes)}


def model_sizes(geometry: Geometry) -> ModelSizes:
    """Return the sizes of a geometry."""
    return _KINDS[geometry.architecture].of(geometry)
