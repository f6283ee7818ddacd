"""The settings of the learning rate over the updates; formulas in `stages.config.schedule`."""

import enum

from threadloom.stages.config.section import Section


class ScheduleKind(enum.Enum):
    """The learning-rate schedules; formulas in `stages.config.schedule`."""

    CONSTANT = "constant"
    """`optimizer.lr` throughout."""
    COSINE = "cosine"
    """Half a cosine from `optimizer.lr` to `min_lr`."""
    LINEAR = "linear"
    """A straight line from `optimizer.lr` to `min_lr`."""
    STEP = "step"
    """Multiplied by `factor` every `every` updates."""
    COSINE_RESTARTS = "cosine_restarts"
    """A sequence of cosines, each cycle `multiplier` times as long as the previous one."""
    WSD = "wsd"
    """Warm-up, stable, decay: `optimizer.lr`, then half a cosine to `min_lr` over the last `cooldown_share`."""
    CONSTANT_COOLDOWN = "constant_cooldown"
    """`optimizer.lr`, then `cooldown` to `min_lr` over the last `cooldown_share`."""

    @property
    def ends(self) -> bool:
        """True if the decay ends at `schedule.decay_steps`."""
        return self in (ScheduleKind.COSINE, ScheduleKind.LINEAR) or self.cools_down

    @property
    def cools_down(self) -> bool:
        """True if the rate is constant until the last `schedule.cooldown_share` of the updates."""
        return self in (ScheduleKind.WSD, ScheduleKind.CONSTANT_COOLDOWN)


class Cooldown(enum.Enum):
    """The shapes of the decay that ends `constant_cooldown`."""

    LINEAR = "linear"
    """A straight line."""
    SQRT = "1-sqrt"
    """One minus the square root of the completed part: steep at first."""


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """The learning rate over the updates."""

    kind: ScheduleKind = ScheduleKind.COSINE
    """The decay after the warm-up."""
    warmup: int | None = 0
    """Updates of the linear warm-up. None (`auto`): 15 % of the updates, as in the fit of
    the rule for `optimizer.lr`; more with a delay."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay; the lower limit of step decay."""
    decay_steps: int | None = None
    """Update at which cosine, linear, wsd and constant_cooldown reach `min_lr`. None: `steps`."""
    every: int = 1000
    """Step decay: updates between two steps."""
    factor: float = 0.5
    """Step decay: factor of a step."""
    period: int = 1000
    """Warm restarts: updates of the first cycle."""
    multiplier: int = 2
    """Warm restarts: ratio of the lengths of two consecutive cycles."""
    cooldown_share: float = 0.2
    """Wsd and constant_cooldown: the share of the updates until `decay_steps` in which the rate decays, the last ones.
    It begins at the end of the warm-up at the earliest."""
    cooldown: Cooldown = Cooldown.SQRT
    """Constant_cooldown: the shape of its decay."""
    delay_warmup: int | None = None
    """With `delay_correction=warmup`: updates until the learning rate has its full value. None: 400."""
    synchronous: int = 0
    """With a delay: updates at the beginning that have none, and are those of AdamW as it is."""
    rewarm: int = 0
    """Updates of a second linear warm-up, from `rewarm_from` on. 0: none."""
    rewarm_from: int = 0
    """Update at which a run that `threadloom grow` made goes on, and its second warm-up begins."""
    context_warmup: int = 0
    """Updates in which training sequences are shorter than `model.context`. 0: none; see
    `stages.config.context_warmup`."""
    context_start: int = 0
    """With `context_warmup`: the smallest context, a divisor of `model.context`. 0: an eighth of it."""
