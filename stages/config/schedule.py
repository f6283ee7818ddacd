"""The learning rate of each update, as a pure function of the update's number.

Updates are numbered from 0: `learning_rate(schedule, peak, k)` is the rate of the update that computes version k + 1
from version k. With the peak η = `optimizer.lr`, the end η_min = `schedule.min_lr`, W = `schedule.warmup` and
D = `schedule.decay_steps`:

    all kinds        η (k + 1) / (W + 1) while k < W, nanoGPT's linear warm-up: never 0, and η itself at k = W
    constant         η
    cosine           η_min + (η − η_min) (1 + cos(π r)) / 2 with r = (k − W) / (D − W); η_min from k = D on
    linear           η_min + (η − η_min) (1 − r) with the same r; η_min from k = D on
    step             η · factor^⌊(k − W) / every⌋, but not below η_min
    cosine_restarts  η_min + (η − η_min) (1 + cos(π t / T_i)) / 2, where t counts the updates since the last restart
                     and cycle i lasts T_i = period · multiplier^i updates

With Q = `schedule.rewarm` and G = `schedule.rewarm_from`, the rate is multiplied by (k − G + 1) / (Q + 1) while
G <= k < G + Q: the warm-up of a model that has grown (`threadloom grow`).

With `delay_correction=warmup`, K = `schedule.delay_warmup` and p = 1 − min(k / K, 1), `rate_under_delay` multiplies the
rate by (τ + 1)^−p.

Sources: Yang et al. 2021 (arXiv 1910.05124, "PipeMare", technique 1) for the warm-up under a delay; Radford et al. 2018
(warm-up and cosine) as in nanoGPT's `get_lr`; Goyal et al. 2017 for linear warm-up; He et al. 2015 for step decay;
Loshchilov & Hutter 2017, "SGDR", equation 5, for the warm restarts.
"""

import math

from threadloom.stages.config.resolved import ResolvedSchedule
from threadloom.stages.config.settings import ScheduleKind


def learning_rate(schedule: ResolvedSchedule, peak: float, update: int) -> float:
    """Return the learning rate of update number `update` (from 0) of a schedule whose highest rate is `peak`."""
    if update < 0:
        raise ValueError(f"updates are numbered from 0, got {update}")
    rate = _planned_rate(schedule, peak, update)
    since = update - schedule.rewarm_from
    return rate * (since + 1) / (schedule.rewarm + 1) if 0 <= since < schedule.rewarm else rate


def _planned_rate(schedule: ResolvedSchedule, peak: float, update: int) -> float:
    """Return the learning rate of an update without the second warm-up."""
    if update < schedule.warmup:
        return peak * (update + 1) / (schedule.warmup + 1)
    since = update - schedule.warmup
    match schedule.kind:
        case ScheduleKind.CONSTANT:
            return peak
        case ScheduleKind.COSINE:
            left = _half_cosine(_progress(schedule, since))
        case ScheduleKind.LINEAR:
            left = 1.0 - _progress(schedule, since)
        case ScheduleKind.STEP:
            return max(schedule.min_lr, peak * schedule.factor ** (since // schedule.every))
        case ScheduleKind.COSINE_RESTARTS:
            left = _half_cosine(_cycle_position(since, schedule.period, schedule.multiplier))
    return schedule.min_lr + left * (peak - schedule.min_lr)


def rate_under_delay(rate: float, delay: int, warmup: int, update: int) -> float:
    """Return the learning rate `rate` of update number `update` (from 0), reduced during the warm-up for a delay."""
    return rate * (delay + 1) ** (min(update / warmup, 1.0) - 1.0) if warmup else rate


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(schedule: ResolvedSchedule, since: int) -> float:
    """Return the completed fraction of the decay: 0 at the end of the warm-up, 1 from `decay_steps` on."""
    length = schedule.decay_steps - schedule.warmup
    return min(1.0, since / length) if length > 0 else 1.0


def _cycle_position(since: int, period: int, multiplier: int) -> float:
    """Return the completed fraction of the current cycle, in [0, 1)."""
    if multiplier == 1:
        return since % period / period
    while since >= period:
        since -= period
        period *= multiplier
    return since / period
