"""Pilots: short complete trainings on the text of a configuration, each from new weights and with its own decay."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from threadloom.pipeline import StageFailure
from threadloom.stages.config import Config
from threadloom.stages.data import Dataset, EvaluationChoice, open_prepared, prepare, read_corpus, training_batches
from threadloom.stages.memory import Evaluation
from threadloom.stages.resolve import RATE_RULE, gemm_settings, rate_and_warmup, resolve
from threadloom.stages.step import TrainingDiverged, Validation
from threadloom.stages.tools.tune.halving import Pilot
from threadloom.stages.training import Training

EVALUATED = 40
"""Batches of the validation split that the loss of a pilot is the mean of; all if there are fewer."""


@dataclass(frozen=True)
class RateChoice:
    """A learning rate, and the share of the updates in which it rises.

    The best rate depends on the number of updates. So that pilots of different lengths and the training itself are
    comparable, the rate is that of `length` updates, and follows their number as in `RATE_RULE`. That was fitted on
    models that begin untrained: a fine-tuning keeps `lr`.
    """

    lr: float
    warmup: float
    length: int

    def applied(self, config: Config, updates: int) -> Config:
        """Return the configuration of a training of `updates` updates with this choice; its decay ends with it."""
        lr = self.lr if config.init else self.lr * RATE_RULE.of_length(updates) / RATE_RULE.of_length(self.length)
        lr = max(lr, config.schedule.min_lr)
        schedule = msgspec.structs.replace(config.schedule, warmup=round(self.warmup * updates), decay_steps=updates)
        optimizer = msgspec.structs.replace(config.optimizer, lr=lr)
        return msgspec.structs.replace(config, steps=updates, optimizer=optimizer, schedule=schedule)


def candidates(config: Config) -> list[RateChoice]:
    """Return the choices to compare: the configuration's own, and rates from half to four times as large.

    The most promising come first, because a small budget compares the first ones alone.
    """
    (lr, warmup), length = rate_and_warmup(config), config.steps
    own = RateChoice(lr, warmup / length, length)
    around = [RateChoice(lr * factor, share, length) for share in (0.15, 0.25, 0.05) for factor in (2.0, 4.0, 0.5, 1.0)]
    return list(dict.fromkeys([own, *around]))


@dataclass(frozen=True)
class Pilots:
    """Trains candidates on a prepared text."""

    config: Config
    cores: int
    data: Dataset

    def __call__(self, choice: RateChoice, updates: int) -> Pilot[RateChoice]:
        """Train a candidate for `updates` updates and return its validation loss; inf if it diverges."""
        begin = time.perf_counter()
        config = self._config(choice, updates)
        resolved = resolve(config, self.cores, self.data.tokenizer.vocab_size, threads=self.cores)
        choose = EvaluationChoice(config.data, self.data.validation, config.batch_size, resolved.micro_batch)
        windows = choose(EVALUATED)
        source = training_batches(config.data, self.data, resolved.batch_sizes, config.seed)
        training = Training(resolved, source, Validation(windows, windows), order=self.data.order)
        loss = math.inf
        try:
            with gemm_settings(resolved), training.graph().start(resources=training.resources) as run:
                for event in run:
                    if isinstance(event, Evaluation):
                        loss = event.val_loss
        except StageFailure as failure:
            if not isinstance(failure.__cause__, TrainingDiverged):
                raise
        return Pilot(choice, updates, loss, time.perf_counter() - begin)

    def _config(self, choice: RateChoice, updates: int) -> Config:
        config = choice.applied(self.config, updates)
        return msgspec.structs.replace(config, evaluation=msgspec.structs.replace(config.evaluation, interval=0))


@contextmanager
def pilots_on_text(config: Config, cores: int, available: int | None) -> Iterator[Pilots]:
    """Yield the pilots of a configuration; its text is tokenised into a folder that is removed at the end.

    `available` is the memory that the preparation may take, in bytes; None: any. Raises as the preparation of a run.
    """
    with TemporaryDirectory(prefix="threadloom-tune-") as folder:
        if config.data.prepared:
            data = open_prepared(config.data, config.model, Path(folder))
        else:
            data = prepare(config.data, config.model, read_corpus(config.data), Path(folder), available)
        yield Pilots(config, cores, data)
