"""The settings of dropout."""

from threadloom.stages.config.section import Section


class DropoutConfig(Section, frozen=True, kw_only=True):
    """Probabilities with which elements are dropped in training; the others are divided by 1 less that.

    Evaluations drop none. The masks follow from seed, batch and micro-batch: a replay and a resumed run have the same.
    """

    embedding: float = 0.0
    """Of the input embeddings."""

    residual: float = 0.0
    """Of the outputs of attention and MLP, before they are added to the residual stream."""

    attention: float = 0.0
    """Of the probabilities of attention."""

    @property
    def drops(self) -> bool:
        """True if there is dropout."""
        return max(self.embedding, self.residual, self.attention) > 0


NO_DROPOUT = DropoutConfig()
"""The default: nothing is dropped."""
