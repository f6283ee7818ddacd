"""The settings of a GPT-2 model."""

from threadloom.stages.config.transformer import ModelArchitecture, TransformerConfig
from threadloom.stages.models import Geometry


class Gpt2Config(
    TransformerConfig, frozen=True, kw_only=True, tag_field="architecture", tag=ModelArchitecture.GPT2.value
):
    """A GPT-2 model; its heads share the channels equally."""

    architecture = ModelArchitecture.GPT2

    @classmethod
    def of(cls, geometry: Geometry) -> "Gpt2Config":
        """Return the settings of a model with these sizes."""
        return cls(
            vocab_size=geometry.vocabulary,
            context=geometry.context,
            layers=geometry.layers,
            heads=geometry.heads,
            channels=geometry.channels,
        )

    def check(self) -> None:
        """Raise ConfigError for sizes at odds with one another."""
        self._check_channels()

    def resolved(self, vocabulary: int) -> "ResolvedGpt2":
        """Return the settings of a model with `vocabulary` tokens."""
        return ResolvedGpt2(
            vocab_size=vocabulary,
            context=self.context,
            layers=self.layers,
            heads=self.heads,
            channels=self.channels,
            residual_scaling=self.residual_scaling,
        )

    def geometry_with(self, vocabulary: int) -> Geometry:
        """Return the sizes of the model with `vocabulary` tokens, from which the shapes of all tensors follow."""
        return self.resolved(vocabulary).geometry()


class ResolvedGpt2(Gpt2Config, frozen=True, kw_only=True, tag=ModelArchitecture.GPT2.value):
    """A GPT-2 model with the size of its vocabulary."""

    vocab_size: int

    def geometry(self) -> Geometry:
        """Return the sizes from which the shapes of all tensors follow."""
        return Geometry(self.vocab_size, self.context, self.layers, self.heads, self.channels)
