"""The warm-up of the sequence length: the context of each update, as a pure function of the update's number.

With N = `schedule.context_warmup`, T = `model.context` and c = `schedule.context_start`, let c = c_0 < … < c_S = T be
the multiples of c that divide T. Update k, from 0, reads each row block of T tokens as T / c_i independent sequences of
c_i tokens, where i = ⌊k S / N⌋ while k < N, and i = S from then on. Every update has the same number of tokens.

Sources: Li et al. 2022 (arXiv 2108.06084, "The stability-efficiency dilemma") for the warm-up of the length; as in
Shortformer (Press et al. 2021, arXiv 2012.15832), which has two lengths, the lengths divide the longest.
"""

from dataclasses import dataclass

from threadloom.stages.config.divisors import divisors
from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.schedule_settings import ScheduleConfig

START_PARTS = 8
"""Sequences that a row block is divided into at first, unless `schedule.context_start` says otherwise."""


@dataclass(frozen=True)
class ContextWarmup:
    """The contexts of a run whose first updates have shorter sequences."""

    updates: int
    """N, the number of updates before the full context."""
    lengths: tuple[int, ...]
    """The contexts in ascending order, each a divisor of the last, which is T."""

    def context(self, update: int) -> int:
        """Return the context of update number `update` (from 0)."""
        if update < 0:
            raise ValueError(f"updates are numbered from 0, got {update}")
        last = len(self.lengths) - 1
        return self.lengths[update * last // self.updates if update < self.updates else last]


def context_warmup(schedule: ScheduleConfig, context: int) -> ContextWarmup | None:
    """Return the warm-up of the sequence length for a model with `context` rows, or None without one.

    Raises ConfigError if the smallest context does not divide the full one, or if the settings have no effect.
    """
    start = schedule.context_start
    if not schedule.context_warmup:
        if start:
            raise ConfigError(
                "schedule.context_start",
                expected="0 without schedule.context_warmup",
                got=f"{start}",
                cause="it is the context at the beginning of that warm-up",
                hint="set schedule.context_warmup to its number of updates, or leave schedule.context_start out",
            )
        return None
    shorter = divisors(context)[:-1]
    if not shorter:
        raise ConfigError(
            "schedule.context_warmup",
            expected="0 with model.context=1, which has no shorter sequences",
            got=f"{schedule.context_warmup}",
            hint="leave it out",
        )
    wanted = start or context // START_PARTS
    if wanted not in shorter or (not start and context % START_PARTS):
        raise ConfigError(
            "schedule.context_start",
            expected=f"a divisor of model.context = {context} below it, with schedule.context_warmup",
            got=f"{start}" if start else f"0, which is model.context / {START_PARTS}",
            hint=f"its divisors below it are {shorter}",
        )
    parts = divisors(context // wanted)
    return ContextWarmup(schedule.context_warmup, tuple(wanted * part for part in parts))
