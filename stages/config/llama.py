"""The settings of a model of the Llama family: Llama, SmolLM2 and 3, Mistral, Qwen2, Qwen3.

The models differ in few settings: SmolLM2 and 3 are `tied`, Qwen2 has `qkv_bias`, Qwen3 has `qk_norm` and a
`head_size`, SmolLM3 has `layers_without_rotary`, Llama 3.1 has the rotary scaling `llama3`.
"""

import enum
from typing import Any

import msgspec

from threadloom.stages.config.divisors import divisors
from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.config.transformer import ModelArchitecture, TransformerConfig
from threadloom.stages.models import Geometry, Llama3Scaling, LlamaGeometry, Rotary

MLP_MULTIPLE = 256
"""The derived width of the MLP is rounded up to a multiple of this, as that of the first Llama."""


class RotaryScaling(enum.Enum):
    """The scalings of rotary frequencies, which extend the context of a trained model."""

    NONE = "none"
    """No scaling."""
    LINEAR = "linear"
    """Every frequency is divided by `factor` (Chen et al., 2023)."""
    LLAMA3 = "llama3"
    """Low frequencies are divided by `factor`, high ones are kept, those between are interpolated (Llama 3.1)."""


class RotaryConfig(Section, frozen=True, kw_only=True):
    """Rotary positions (Su et al., 2021)."""

    theta: float = 10_000.0
    """Base of the frequencies, `rope_theta` in Hugging Face's layout."""
    dimensions: int | None = None
    """Leading dimensions of a head that are rotated, an even number. None: all of them."""
    scaling: RotaryScaling = RotaryScaling.NONE
    """Scaling of the frequencies."""
    factor: float = 1.0
    """Linear, Llama 3: divisor of the scaled frequencies."""
    low_freq_factor: float = 1.0
    """Llama 3: wavelengths longer than `original_context` / `low_freq_factor` are scaled by the whole factor."""
    high_freq_factor: float = 4.0
    """Llama 3: wavelengths shorter than `original_context` / `high_freq_factor` are not scaled."""
    original_context: int = 8192
    """Llama 3: context of the model before the scaling, in tokens."""

    @classmethod
    def of(cls, rotary: Rotary) -> "RotaryConfig":
        """Return the settings of rotary positions."""
        if rotary.llama3:
            return cls(
                theta=rotary.theta,
                dimensions=rotary.dimensions,
                scaling=RotaryScaling.LLAMA3,
                factor=rotary.llama3.factor,
                low_freq_factor=rotary.llama3.low_freq_factor,
                high_freq_factor=rotary.llama3.high_freq_factor,
                original_context=rotary.llama3.original_context,
            )
        scaling = RotaryScaling.NONE if rotary.linear_factor == 1 else RotaryScaling.LINEAR
        return cls(theta=rotary.theta, dimensions=rotary.dimensions, scaling=scaling, factor=rotary.linear_factor)

    def check(self, head_size: int) -> None:
        """Raise ConfigError for settings at odds with one another or with the head size."""
        if self.dimensions is not None and (self.dimensions % 2 or self.dimensions > head_size):
            raise ConfigError(
                "model.rotary.dimensions",
                expected=f"an even number, at most the head size {head_size}",
                got=f"{self.dimensions}",
                cause="rotary positions rotate pairs of dimensions",
                hint="null rotates all dimensions",
            )
        if self.scaling is RotaryScaling.NONE and self.factor != 1:
            raise ConfigError(
                "model.rotary.factor",
                expected="1 without scaling",
                got=f"{self.factor:g}",
                hint="set model.rotary.scaling=linear or llama3 too",
            )
        if self.scaling is RotaryScaling.LLAMA3 and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                "model.rotary.high_freq_factor",
                expected=f"more than model.rotary.low_freq_factor = {self.low_freq_factor:g}",
                got=f"{self.high_freq_factor:g}",
                hint="Llama 3.1 has 1 and 4",
            )

    def rotary(self, head_size: int) -> Rotary:
        """Return the rotary positions of heads of this size."""
        scaled = Llama3Scaling(self.factor, self.low_freq_factor, self.high_freq_factor, self.original_context)
        return Rotary(
            theta=self.theta,
            dimensions=None if self.dimensions == head_size else self.dimensions,
            linear_factor=self.factor if self.scaling is RotaryScaling.LINEAR else 1.0,
            llama3=scaled if self.scaling is RotaryScaling.LLAMA3 else None,
        )


class LlamaConfig(
    TransformerConfig, frozen=True, kw_only=True, tag_field="architecture", tag=ModelArchitecture.LLAMA.value
):
    """A model of the Llama family. None: derived from the other sizes as the first Llama has them."""

    architecture = ModelArchitecture.LLAMA

    kv_heads: int | None = None
    """Heads of keys and values, a divisor of `heads`. None: `heads`."""
    head_size: int | None = None
    """Dimensions of a head, an even number. None: `channels` / `heads`."""
    mlp_width: int | None = None
    """Width of the hidden layer of the MLP. None: 8/3 `channels`, rounded up to a multiple of 256."""
    epsilon: float = 1e-6
    """Added to the mean of squares of every RMS norm."""
    rotary: RotaryConfig = RotaryConfig()
    """The settings `model.rotary.*`."""
    layers_without_rotary: tuple[int, ...] = ()
    """Layers, counted from 0, whose attention has no positions (SmolLM3: every fourth, `[3, 7, ...]`)."""
    tied: bool = False
    """The output projection is the token embedding."""
    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    attn_proj_bias: bool = False
    """The projection of the attention's output has a bias."""
    mlp_bias: bool = False
    """The three matrices of the MLP have biases."""
    qk_norm: bool = False
    """Queries and keys pass an RMS norm per head before the rotary positions (Qwen3)."""

    @classmethod
    def of(cls, geometry: Geometry) -> "LlamaConfig":
        """Return the settings of a model with these sizes, a `LlamaGeometry`."""
        assert isinstance(geometry, LlamaGeometry)
        return cls(
            vocab_size=geometry.vocabulary,
            context=geometry.context,
            layers=geometry.layers,
            heads=geometry.heads,
            channels=geometry.channels,
            kv_heads=geometry.kv_heads,
            head_size=geometry.head_size,
            mlp_width=geometry.mlp_width,
            epsilon=geometry.epsilon,
            rotary=RotaryConfig.of(geometry.rotary),
            layers_without_rotary=tuple(sorted(geometry.layers_without_rotary)),
            tied=geometry.tied,
            qkv_bias=geometry.qkv_bias,
            attn_proj_bias=geometry.attn_proj_bias,
            mlp_bias=geometry.mlp_bias,
            qk_norm=geometry.qk_norm,
        )

    @property
    def size_label(self) -> str:
        """The sizes that the speed of a training depends on, without the vocabulary, for the name of a file."""
        sizes = self.resolved(1)
        head = "tied" if self.tied else "untied"
        return f"llama{super().size_label}k{sizes.kv_heads}d{sizes.head_size}f{sizes.mlp_width}{head}"

    def check(self) -> None:
        """Raise ConfigError for sizes at odds with one another."""
        if self.head_size is None:
            self._check_channels(remedy="; or set model.head_size")
        sizes = self.resolved(1)
        if self.heads % sizes.kv_heads:
            raise ConfigError(
                "model.kv_heads",
                expected=f"a divisor of model.heads = {self.heads}",
                got=f"{sizes.kv_heads}",
                hint=f"its divisors are {divisors(self.heads)}",
            )
        if sizes.head_size % 2:
            derived = f"model.channels / model.heads = {self.channels} / {self.heads}"
            raise ConfigError(
                "model.head_size",
                expected="an even number",
                got=f"{sizes.head_size}" + (f" = {derived}" if self.head_size is None else ""),
                cause="rotary positions rotate pairs of dimensions",
                hint="set model.head_size, or another model.heads",
            )
        if beyond := [layer for layer in self.layers_without_rotary if not 0 <= layer < self.layers]:
            raise ConfigError(
                "model.layers_without_rotary",
                expected=f"layers from 0 to {self.layers - 1}",
                got=f"{beyond}",
                cause=f"the model has {self.layers} layers, counted from 0",
            )
        self.rotary.check(sizes.head_size)

    def resolved(self, vocabulary: int) -> "ResolvedLlama":
        """Return the settings of a model with `vocabulary` tokens, with every size."""
        head_size = self.head_size or self.channels // self.heads
        dimensions = self.rotary.dimensions or head_size
        settings: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        settings |= {
            "vocab_size": vocabulary,
            "kv_heads": self.kv_heads or self.heads,
            "head_size": head_size,
            "mlp_width": self.mlp_width or -(-8 * self.channels // (3 * MLP_MULTIPLE)) * MLP_MULTIPLE,
            "rotary": ResolvedRotary(**{**msgspec.structs.asdict(self.rotary), "dimensions": dimensions}),
        }
        return ResolvedLlama(**settings)

    def geometry_with(self, vocabulary: int) -> LlamaGeometry:
        """Return the sizes of the model with `vocabulary` tokens, from which the shapes of all tensors follow."""
        return self.resolved(vocabulary).geometry()


class ResolvedRotary(RotaryConfig, frozen=True, kw_only=True):
    """Rotary positions with the number of rotated dimensions."""

    dimensions: int


class ResolvedLlama(LlamaConfig, frozen=True, kw_only=True, tag=ModelArchitecture.LLAMA.value):
    """A model of the Llama family with every size."""

    vocab_size: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rotary: ResolvedRotary

    def geometry(self) -> LlamaGeometry:
        """Return the sizes from which the shapes of all tensors follow."""
        return LlamaGeometry(
            vocabulary=self.vocab_size,
            context=self.context,
            layers=self.layers,
            heads=self.heads,
            channels=self.channels,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            mlp_width=self.mlp_width,
            epsilon=self.epsilon,
            rotary=self.rotary.rotary(self.head_size),
            layers_without_rotary=frozenset(self.layers_without_rotary),
            tied=self.tied,
            qkv_bias=self.qkv_bias,
            attn_proj_bias=self.attn_proj_bias,
            mlp_bias=self.mlp_bias,
            qk_norm=self.qk_norm,
        )
