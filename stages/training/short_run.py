"""Short runs on random tokens, which measure the speed of a configuration."""

import math
import time
from dataclasses import dataclass

import msgspec

from threadloom.pipeline import ChannelTimeout, Run, RunStatistics
from threadloom.stages.config import Config, ResolvedConfig, ScheduleConfig, ScheduleKind
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Update
from threadloom.stages.resolve import gemm_settings
from threadloom.stages.training.measured_step import ENDLESS
from threadloom.stages.training.training import Training

RANDOM_VOCABULARY = 65
"""Vocabulary assumed for a configuration that takes it from the text: the characters of tinyshakespeare."""
MIN_UPDATES = 2
"""Updates that are measured even if they take longer than the time asked for."""


def measured_config(config: Config, delay: int | None = None) -> Config:
    """Return an endless configuration at a constant learning rate with a vocabulary, and with `delay` if given."""
    model = msgspec.structs.replace(config.model, vocab_size=config.model.vocab_size or RANDOM_VOCABULARY)
    return msgspec.structs.replace(
        config, model=model, steps=ENDLESS, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT),
        delay=config.delay if delay is None else delay,
    )  # fmt: skip


@dataclass(frozen=True)
class ShortRun:
    """The result of a short run."""

    tokens_per_s: float
    """The speed; 0 if the run reached its time limit before two updates had been counted."""
    statistics: RunStatistics
    """Statistics of the measured interval."""


def tokens_per_second(config: ResolvedConfig, seconds: float) -> float:
    """Run the pipeline on random tokens for about `seconds` and return its speed in tokens per second."""
    return short_run(config, seconds).tokens_per_s


def short_run(config: ResolvedConfig, seconds: float, limit: float = math.inf) -> ShortRun:
    """Run the pipeline on random tokens for about `seconds` and return its speed and statistics.

    The first τ + 1 updates, during which the pipeline fills, do not count. After `limit` seconds the run is stopped,
    whatever it has counted. `config.steps` must be large enough for the run to last that long. The kernels must have
    been compiled.
    """
    training = Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    deadline = time.monotonic() + limit
    first = last = None
    before: RunStatistics | None = None
    with gemm_settings(config), training.graph().start(resources=training.resources) as run:
        while (event := _next_event(run, deadline)) is not None:
            if not isinstance(event, Update) or event.step <= config.delay:
                continue
            if first is None:
                first, before = event, run.statistics()
            last = event
            if event.step - first.step >= MIN_UPDATES and event.seconds - first.seconds >= seconds:
                break
        statistics = run.statistics().since(before)
    if first is None or last is None or last is first:
        return ShortRun(0.0, statistics)
    tokens = (last.step - first.step) * config.sequences * config.model.context
    return ShortRun(tokens / max(last.seconds - first.seconds, 1e-9), statistics)


def _next_event(run: Run, deadline: float) -> object | None:
    """Return the next event of a run, or None at the deadline."""
    left = deadline - time.monotonic()
    try:
        return iter(run).get(None if math.isinf(left) else max(0.0, left)) if left > 0 else None
    except ChannelTimeout:
        return None
