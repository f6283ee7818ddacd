"""The settings of the optimizer."""

import enum
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.config.trained import matching_tensors
from threadloom.stages.models import NONE_FROZEN, Geometry, decayed_tensors, trained_shapes

_GROUPS = "optimizer.groups"
_MOST = 1e3
"""Largest factor of a learning rate and largest weight decay."""


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


class OptimizerGroup(Section, frozen=True, kw_only=True):
    """Tensors with a learning rate or a weight decay of their own."""

    match: str
    """Pattern of their names, as in `train.only`."""
    lr: float | None = None
    """Factor of the learning rate. None: that of the groups before, or 1."""
    decay: float | None = None
    """Weight decay instead of `optimizer.weight_decay`, also of tensors that have none otherwise. None: as without."""


@dataclass(frozen=True)
class TensorRates:
    """The settings of the optimizer that may differ from tensor to tensor."""

    lr: float
    """Factor of the learning rate."""
    weight_decay: float
    """Fraction of a weight that decays per update, at a learning rate of 1."""


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
    clip_value: float = 0.0
    """Each element of the gradient is limited to ± this, before the norm of `clip` is computed. 0: no limit."""
    groups: tuple[OptimizerGroup, ...] = ()
    """Tensors with another learning rate or weight decay. Of several groups with a tensor the last one decides, for
    each of the two."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and saved beside them:
    an update keeps this share of it. 0: no average."""
    rotation: int = 0
    """AdamW of matrices in a rotated basis, which is renewed every so many updates, such as 10. 0: in that of the
    weights; see `stages.step.optimizers.rotation`."""
    lead: float | None = None
    """Strength λ of `delay_correction=lead` and `forecast_lead`. None: `beta1`, or 1.3 from a delay of 2 on."""
    forecast_lead: float | None = None
    """Lead μ of the steps that `delay_correction=forecast` and `forecast_lead` predict. None: that of the step, or 2
    with `forecast_lead` from a delay of 2 on, if `lead` is None too."""
    synchronous_beta1: float | None = None
    """Decay rate of the first moment in the updates of `schedule.synchronous`. None: 0.9, and at most `beta1`."""

    def tensor_rates(self, geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> Mapping[str, TensorRates]:
        """Return the rates of every tensor that the optimizer updates; empty without groups.

        Raises ConfigError for a group without a tensor, or with a value outside of its limits.
        """
        if not self.groups:
            return {}
        decayed, names = decayed_tensors(geometry), trained_shapes(geometry, frozen)
        rates = {name: TensorRates(1.0, self.weight_decay if name in decayed else 0.0) for name in names}
        for group in self.groups:
            _require_limits(group)
            for name in _trained(group, geometry, rates.keys()):
                old = rates[name]
                lr, decay = group.lr, group.decay
                rates[name] = TensorRates(old.lr if lr is None else lr, old.weight_decay if decay is None else decay)
        return rates


def _trained(group: OptimizerGroup, geometry: Geometry, trained: Set[str]) -> Set[str]:
    """Return the tensors of a group that the optimizer updates; raise ConfigError if there are none."""
    found = matching_tensors(_GROUPS, group.match, geometry) & trained
    if not found:
        raise ConfigError(
            _GROUPS,
            expected="patterns of tensors that the run trains",
            got=f"{group.match!r}, whose tensors are frozen or computed from others",
            hint=f"the trained ones are {', '.join(sorted(trained))}",
        )
    return found


def _require_limits(group: OptimizerGroup) -> None:
    for name, value in (("lr", group.lr), ("decay", group.decay)):
        if value is not None and not (math.isfinite(value) and 0 <= value <= _MOST):
            raise ConfigError(
                _GROUPS, expected=f"{name} from 0 to {_MOST:g}", got=f"{value!r} in the group {group.match!r}"
            )
    if group.lr is None and group.decay is None:
        raise ConfigError(
            _GROUPS,
            expected="lr or decay in each group",
            got=f"neither in the group {group.match!r}",
            hint='for example {"match": "*.bias", "decay": 0}',
        )
