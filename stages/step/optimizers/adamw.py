"""AdamW (Loshchilov & Hutter 2019) with clipping by global norm."""

from collections.abc import Callable, Set

from threadloom import kernels
from threadloom.kernels import AdamWStep
from threadloom.pipeline import Arena
from threadloom.stages.config import ResolvedOptimizer, TensorRates
from threadloom.stages.models import NONE_FROZEN, Geometry, trained_shapes
from threadloom.stages.step.optimizers.average import WeightAverage
from threadloom.stages.step.optimizers.rotation import Rotation

MOMENTS = {"m": 1, "v": 2}
"""Name in the state → the power of the gradient that it is a running mean of, in the order of the kernels."""


class AdamWState:
    """The part that all forms of AdamW share: running means of the gradient (`m`) and of its square (`v`)."""

    def __init__(
        self,
        settings: ResolvedOptimizer,
        learning_rate: Callable[[int], float],
        geometry: Geometry,
        frozen: Set[str] = NONE_FROZEN,
    ) -> None:
        """`learning_rate` maps the number of an update, counted from 0, to its learning rate."""
        self._settings = settings
        self._learning_rate = learning_rate
        self.rates = settings.tensor_rates(geometry, frozen)
        self.average = WeightAverage(settings.ema, trained_shapes(geometry, frozen)) if settings.ema else None
        self.state = {name: Arena(trained_shapes(geometry, frozen)) for name in MOMENTS}
        self.rotation = Rotation(geometry, frozen, settings.rotation, self.state["m"]) if settings.rotation else None

    @property
    def master(self) -> Arena | None:
        """None: versions are the weights."""
        return None


class AdamW(AdamWState):
    """AdamW as published. Implements `Optimizer`."""

    @property
    def update(self) -> Callable[..., None]:
        """The kernel on flat float32 arrays."""
        return kernels.adamw_update

    @property
    def update_packed(self) -> Callable[..., None]:
        """The kernel on rows of a matrix that packs the new weights as bfloat16."""
        from threadloom.kernels.bits16 import adamw_update_packed  # loaded by runs in bfloat16 only

        return adamw_update_packed

    def step(self, batch: int, applied: int, grad_norm: float, scale: float) -> AdamWStep:
        """Return the parameters of the update from batch `batch`, after `applied` updates that were not skipped.

        `grad_norm` is the unscaled global norm; the gradient itself still contains the loss scale `scale`. Clipping is
        by global norm (Pascanu et al. 2013); bias corrections are those of Adam (Kingma & Ba 2015, Algorithm 1).
        """
        s = self._settings
        return AdamWStep(
            lr=self._learning_rate(batch),
            beta1=s.beta1,
            beta2=s.beta2,
            eps=s.eps,
            weight_decay=s.weight_decay,
            bias_correction1=1.0 - s.beta1 ** (applied + 1),
            bias_correction2=1.0 - s.beta2 ** (applied + 1),
            grad_scale=clip_factor(s.clip, grad_norm) / scale,
        )

    def step_of(self, step: AdamWStep, rates: TensorRates) -> AdamWStep:
        """Return the parameters of an update for a tensor with rates of its own."""
        return step._replace(lr=step.lr * rates.lr, weight_decay=rates.weight_decay)


def clip_factor(limit: float, grad_norm: float) -> float:
    """Return the factor that reduces a gradient of norm `grad_norm` to norm `limit`; 1 if none is needed (0: never)."""
    return limit / (grad_norm + 1e-6) if limit and grad_norm > limit else 1.0
