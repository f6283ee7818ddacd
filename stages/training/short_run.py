"""Short runs on random tokens, which measure the speed of a configuration."""

import msgspec

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


def tokens_per_second(config: ResolvedConfig, seconds: float) -> float:
    """Run the pipeline on random tokens for about `seconds` and return its speed in tokens per second.

    The first τ + 1 updates, during which the pipeline fills, do not count. `config.steps` must be large enough for the
    run to last that long. The kernels must have been compiled.
    """
    training = Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    first = last = None
    with gemm_settings(config), training.graph().start(resources=training.resources) as run:
        for event in run:
            if not isinstance(event, Update) or event.step <= config.delay:
                continue
            if first is None:
                first = event
            last = event
            if event.step - first.step >= MIN_UPDATES and event.seconds - first.seconds >= seconds:
                break
    assert first is not None
    assert last is not None
    tokens = (last.step - first.step) * config.sequences * config.model.context
    return tokens / max(last.seconds - first.seconds, 1e-9)
