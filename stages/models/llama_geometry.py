"""The sizes and variants of the Llama family: Llama, SmolLM2 and 3, Mistral, Qwen2, Qwen3."""

from dataclasses import dataclass, field
from typing import ClassVar

from threadloom.stages.models.geometry import Geometry


@dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of rotary frequencies of Llama 3.1 (`rope_type` llama3), which extends the context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al., 2021), by halves: dimension i is paired with i + M / 2."""

    theta: float = 10_000.0
    """Base of the frequencies, ``theta ** (-2 i / M)``."""
    dimensions: int | None = None
    """M, the leading dimensions of a head that are rotated, an even number. None: all."""
    linear_factor: float = 1.0
    """Divisor of every frequency (`rope_type` linear)."""
    llama3: Llama3Scaling | None = None
    """Scaling by wavelength; only with a `linear_factor` of 1."""


@dataclass(frozen=True)
class LlamaGeometry(Geometry):
    """The sizes of a model of the Llama family; `heads` counts those of queries."""

    architecture: ClassVar[str] = "llama"

    kv_heads: int
    """Heads of keys and values, a divisor of `heads`."""
    head_size: int
    """Dimensions of a head, an even number; independent of `channels`."""
    mlp_width: int
    """Width of the hidden layer of the MLP."""
    epsilon: float = 1e-6
    """Added to the mean of squares of every RMS norm."""
    rotary: Rotary = field(default_factory=Rotary)
    """Rotary positions."""
    layers_without_rotary: frozenset[int] = frozenset()
    """Layers whose attention has no positions at all (SmolLM3)."""
    tied: bool = False
    """True: the output projection is the token embedding."""
    qkv_bias: bool = False
    """True: queries, keys and values have biases (Qwen2; Llama with `attention_bias`)."""
    attn_proj_bias: bool = False
    """True: the projection of the attention's output has a bias."""
    mlp_bias: bool = False
    """True: the three matrices of the MLP have biases."""
    qk_norm: bool = False
    """True: queries and keys of each head pass an RMS norm before the rotary positions (Qwen3)."""

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the MLP."""
        return self.mlp_width

    @property
    def qkv_width(self) -> int:
        """Columns of queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def attn_width(self) -> int:
        """Columns of the heads' outputs, H D."""
        return self.heads * self.head_size

    @property
    def normed_width(self) -> int:
        """Columns of the queries and keys that pass an RMS norm, 0 without one."""
        return (self.heads + self.kv_heads) * self.head_size if self.qk_norm else 0
