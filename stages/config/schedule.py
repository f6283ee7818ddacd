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
    wsd              η while k < B, then η_min + (η − η_min) (1 + cos(π r)) / 2 with r = (k − B) / (D − B), where the
                     decay begins at B = max(W, D − round(cooldown_share · D)); η_min from k = D on
    constant_cooldown  the same with 1 − r (linear) or 1 − √r (1-sqrt) for (1 + cos(π r)) / 2

With Q = `schedule.rewarm` and G = `schedule.rewarm_from`, the rate is multiplied by (k − G + 1) / (Q + 1) while
G <= k < G + Q: the warm-up of a model that has grown (`threadloom grow`).

With `delay_correction=warmup`, K = `schedule.delay_warmup` and p = 1 − min(k / K, 1), `rate_under_delay` multiplies the
rate by (τ + 1)^−p.

Sources: Hu et al. 2024 (arXiv 2404.06395, "MiniCPM") for warm-up, stable, decay, whose decay is that of transformers'
`get_wsd_schedule`; Hägele et al. 2024 (arXiv 2405.18392) for the constant rate with a cooldown and its shape 1-sqrt;
Yang et al. 2021 (arXiv 1910.05124, "PipeMare", technique 1) for the warm-up under a delay; Radford et al. 2018
(warm-up and cosine) as in nanoGPT's `get_lr`; Goyal et al. 2017 for linear warm-up; He et al. 2015 for step decay;
Loshchilov & Hutter 2017, "SGDR", equation 5, for the warm restarts.
"""

import math

from threadloom.stages.config.resolved import ResolvedSchedule
from threadloom.stages.config.schedule_settings import Cooldown, ScheduleKind


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
        case ScheduleKind.WSD:
            left = _half_cosine(_cooldown_progress(schedule, update))
        case ScheduleKind.CONSTANT_COOLDOWN:
            done = _cooldown_progress(schedule, update)
            left = 1.0 - (math.sqrt(done) if schedule.cooldown is Cooldown.SQRT else done)
    return schedule.min_lr + left * (peak - schedule.min_lr)


def cooldown_start(schedule: ResolvedSchedule) -> int:
    """Return the first update of the decay of a schedule that is constant until then."""
    return max(schedule.warmup, schedule.decay_steps - round(schedule.cooldown_share * schedule.decay_steps))


def rate_under_delay(rate: float, delay: int, warmup: int, update: int) -> float:
    """Return the learning rate `rate` of update number `update` (from 0), reduced during the warm-up for a delay."""
    return rate * (delay + 1) ** (min(update / warmup, 1.0) - 1.0) if warmup else rate


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(schedule: ResolvedSchedule, since: int) -> float:
    """Return the completed fraction of the decay: 0 at the end of the warm-up, 1 from `decay_steps` on."""
    length = schedule.decay_steps - schedule.warmup
    return min(1.0, since / length) if length > 0 else 1.0


def _cooldown_progress(schedule: ResolvedSchedule, update: int) -> float:
    """Return the completed fraction of the cooldown: 0 before it, 1 from `decay_steps` on."""
    start = cooldown_start(schedule)
    if update >= schedule.decay_steps:
        return 1.0
    return (update - start) / (schedule.decay_steps - start) if update > start else 0.0


def _cycle_position(since: int, period: int, multiplier: int) -> float:
    """Return the completed fraction of the current cycle, in [0, 1)."""
    if multiplier == 1:
        return since % period / period
    while since >= period:
        since -= period
        period *= multiplier
    return since / period
