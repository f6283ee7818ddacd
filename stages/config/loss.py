"""The settings of the training loss."""

from threadloom.stages.config.section import Section


class LossConfig(Section, frozen=True, kw_only=True):
    """The terms of the training loss beside the cross-entropy. Evaluations report the cross-entropy alone."""

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all tokens, as `torch.nn.CrossEntropyLoss` defines it. 0:
    none."""
    z_loss: float = 0.0
    """Coefficient of the square of the logarithm of the softmax's denominator, which keeps logits near 0 (PaLM, T5X:
    1e-4). 0: none."""

    @property
    def has_terms(self) -> bool:
        """True if the loss is not the cross-entropy alone."""
        return self.label_smoothing > 0 or self.z_loss > 0
