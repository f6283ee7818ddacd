"""AdamW for gradients of older weights: with a lead, with forecasts, or with both (`kernels.common.adamw_delayed`)."""

from collections.abc import Callable, Set

from threadloom import kernels
from threadloom.kernels import DelayedAdamWStep
from threadloom.pipeline import Arena
from threadloom.stages.config import ResolvedOptimizer, TensorRates
from threadloom.stages.models import NONE_FROZEN, Geometry, trained_shapes
from threadloom.stages.step.optimizers.adamw import AdamWState, clip_factor
from threadloom.stages.step.optimizers.optimizer import MASTER


class LeadAdamW(AdamWState):
    """AdamW whose step adds the change of the first moment, `settings.lead` times. Implements `Optimizer`.

    Those from the first `synchronous` batches, whose gradients are not late, have none. The first `synchronous` updates
    that are not skipped have `settings.synchronous_beta1`.
    """

    def __init__(
        self,
        settings: ResolvedOptimizer,
        learning_rate: Callable[[int], float],
        geometry: Geometry,
        frozen: Set[str] = NONE_FROZEN,
        *,
        synchronous: int = 0,
    ) -> None:
        """`synchronous` is the number of batches at the beginning of the run that have no delay."""
        super().__init__(settings, learning_rate, geometry, frozen)
        self._synchronous = synchronous

    @property
    def update(self) -> Callable[..., None]:
        """The kernel on flat float32 arrays."""
        return kernels.adamw_lead_update

    @property
    def update_packed(self) -> Callable[..., None]:
        """The kernel on rows of a matrix that packs the new weights as bfloat16."""
        from threadloom.kernels.bits16 import adamw_lead_update_packed  # loaded by runs in bfloat16 only

        return adamw_lead_update_packed

    def step(self, batch: int, applied: int, grad_norm: float, scale: float) -> DelayedAdamWStep:
        """Return the parameters of the update from batch `batch`, as `AdamW.step` does."""
        s = self._settings
        late = batch >= self._synchronous
        leads = applied > 0 and late
        return DelayedAdamWStep(
            lr=self._learning_rate(batch),
            beta1=s.beta1 if applied >= self._synchronous else s.synchronous_beta1,
            beta2=s.beta2,
            eps=s.eps,
            weight_decay=s.weight_decay,
            bias_correction1=1.0 - self._weight_of_start(applied + 1),
            earlier_correction1=1.0 - self._weight_of_start(applied) if applied else 1.0,
            bias_correction2=1.0 - s.beta2 ** (applied + 1),
            lead=s.lead if leads else 0.0,
            forecast_lead=s.forecast_lead if leads else 0.0,
            horizon=self._horizon(batch),
            grad_scale=clip_factor(s.clip, grad_norm) / scale,
        )

    def _weight_of_start(self, updates: int) -> float:
        """Return the weight that the first moment still gives its value before the first update, which is 0."""
        s, early = self._settings, min(updates, self._synchronous)
        return s.synchronous_beta1**early * s.beta1 ** (updates - early)

    def step_of(self, step: DelayedAdamWStep, rates: TensorRates) -> DelayedAdamWStep:
        """Return the parameters of an update for a tensor with rates of its own."""
        lr, horizon = step.lr * rates.lr, step.horizon * rates.lr
        return step._replace(lr=lr, horizon=horizon, weight_decay=rates.weight_decay)

    def _horizon(self, batch: int) -> float:
        return 0.0


class ForecastAdamW(LeadAdamW):
    """AdamW whose versions are the weights predicted for τ updates later; the weights themselves are its state."""

    def __init__(
        self,
        settings: ResolvedOptimizer,
        learning_rate: Callable[[int], float],
        geometry: Geometry,
        frozen: Set[str] = NONE_FROZEN,
        *,
        delay: int,
        synchronous: int = 0,
    ) -> None:
        """`delay` is τ, the number of updates between a version and the one that its gradient enters."""
        super().__init__(settings, learning_rate, geometry, frozen, synchronous=synchronous)
        self._delay = delay
        self.state[MASTER] = Arena(trained_shapes(geometry, frozen))

    @property
    def master(self) -> Arena:
        """The weights, which each update changes in place."""
        return self.state[MASTER]

    @property
    def update(self) -> Callable[..., None]:
        """The kernel on flat float32 arrays."""
        return kernels.adamw_forecast_update

    @property
    def update_packed(self) -> Callable[..., None]:
        """The kernel on rows of a matrix that packs the forecast as bfloat16."""
        from threadloom.kernels.bits16 import adamw_forecast_update_packed  # loaded by runs in bfloat16 only

        return adamw_forecast_update_packed

    def _horizon(self, batch: int) -> float:
        if batch + 1 < self._synchronous:  # batch + 1 reads the new version, and its gradient enters the next update
            return 0.0
        return sum(self._learning_rate(batch + ahead) for ahead in range(1, self._delay + 1))
