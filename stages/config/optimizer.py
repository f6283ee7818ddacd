"""The settings of the optimizer."""

import enum

from threadloom.stages.config.section import Section


class DelayCorrection(enum.Enum):
    """The remedies for gradients that are τ updates late; formulas in `kernels.common.adamw_delayed`."""

    NONE = "none"
    """AdamW as it is."""
    LEAD = "lead"
    """Each step adds `optimizer.lead` times the change of the first moment."""
    FORECAST = "forecast"
    """Forward and backward read the weights that are predicted for the update that their gradient enters."""
    FORECAST_LEAD = "forecast_lead"
    """Both."""
    WARMUP = "warmup"
    """The learning rate is divided by τ + 1 at first, and rises to its full value over `schedule.delay_warmup`."""

    @property
    def has_lead(self) -> bool:
        """True if steps have a lead."""
        return self in (DelayCorrection.LEAD, DelayCorrection.FORECAST_LEAD)

    @property
    def forecasts(self) -> bool:
        """True if the versions that forward and backward read are forecasts of later weights."""
        return self in (DelayCorrection.FORECAST, DelayCorrection.FORECAST_LEAD)


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """AdamW with decoupled weight decay of matrices."""

    lr: float | None = 1e-3
    """Peak learning rate; the schedule determines that of each update. None (`auto`): from the width of the model, the
    tokens of a batch and the number of updates, by the rule of `stages.resolve.learning_rate`."""
    beta1: float | None = None
    """Decay rate of the first moment. None: 0.9, or 0.95 with a lead, which needs a longer memory."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Fraction of a weight that decays per update, at a learning rate of 1."""
    clip: float = 1.0
    """Maximum global norm of the gradient, which is scaled down if it is larger. 0: no limit."""
    lead: float | None = None
    """Strength λ of `delay_correction=lead` and `forecast_lead`. None: `beta1`, or 1.3 from a delay of 2 on."""
