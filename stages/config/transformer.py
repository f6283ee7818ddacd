"""The settings that the models of all architectures have."""

import enum
from typing import ClassVar

from threadloom.stages.config.divisors import divisors
from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section

MAX_SUGGESTED_HEADS = 64


class ModelArchitecture(enum.Enum):
    """The architectures; the values are the keys of `stages.models.ARCHITECTURES`."""

    GPT2 = "gpt2"
    """GPT-2: LayerNorm, learned positions, GELU."""
    LLAMA = "llama"
    """The Llama family (Llama, SmolLM2 and 3, Mistral, Qwen2, Qwen3): RMS norm, rotary positions, gated MLP."""


class TransformerConfig(Section, frozen=True, kw_only=True):
    """The sizes of a transformer; each architecture derives its section from it."""

    architecture: ClassVar[ModelArchitecture]
    """The architecture, which decides which other settings `model.*` has. A file without it describes a GPT-2."""
    vocab_size: int | None = None
    """Number of tokens of the model. None: the vocabulary of the text's tokenizer."""
    context: int
    """Tokens of a sequence."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads of a block."""
    channels: int
    """Width of the residual stream, a multiple of `heads` unless the architecture has a setting for the head size."""
    residual_scaling: bool = True
    """Initialise the projections that write to the residual stream with smaller weights, as GPT-2 does. It keeps deep
    models stable; shallow models learn slightly better without it."""

    @property
    def size_label(self) -> str:
        """The sizes that the speed of a training depends on, without the vocabulary, for the name of a file."""
        return f"t{self.context}l{self.layers}h{self.heads}c{self.channels}"

    def _check_channels(self, remedy: str = "") -> None:
        """Raise ConfigError unless the heads divide the channels; `remedy` is appended to the hint."""
        if self.channels % self.heads:
            heads = [count for count in divisors(self.channels) if count <= MAX_SUGGESTED_HEADS]
            raise ConfigError(
                "model.channels",
                expected=f"a multiple of model.heads = {self.heads}",
                got=f"{self.channels}",
                hint=f"these numbers of heads divide it: {heads}{remedy}",
            )
