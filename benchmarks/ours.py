"""threadloom's side: the pipeline on random tokens, which makes a given number of updates per request."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.agreement import CHECKED_UPDATES
from benchmarks.inputs import write_inputs
from benchmarks.protocol import FLOAT32, UpdateFigures
from threadloom.stages.checkpoint import FolderWeights
from threadloom.stages.config import Config, Precision, ScheduleConfig, ScheduleKind
from threadloom.stages.data import RandomTokens
from threadloom.stages.memory import Update, label
from threadloom.stages.resolve import from_json, gemm_settings, resolve
from threadloom.stages.training import ENDLESS, StepGate, Training, compile_kernels_of


def measured(config: Config, delay: int, precision: Precision = Precision.FLOAT32) -> Config:
    """Return the configuration that is measured: endless, at a constant learning rate."""
    return msgspec.structs.replace(
        config, delay=delay, steps=ENDLESS, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT), precision=precision
    )


class Threadloom:
    """The pipeline at its default settings for `threads` cores. Its threads persist, and are idle between requests.

    A `folder` gets the weights and the tokens of the updates that are compared (`benchmarks.agreement`), and after each
    request the newest weights and the tokens of those that are left.
    """

    def __init__(
        self, config: str, delay: int, threads: int, folder: Path | None = None, precision: str = FLOAT32
    ) -> None:
        self.config = resolve(measured(from_json(config), delay, Precision(precision)), threads)
        compile_kernels_of(self.config, lambda _: None)
        self._source = RandomTokens(self.config.geometry(), self.config.batch_sizes, self.config.seed)
        self._gate = StepGate(self._source)
        init = self.config.init
        initial = FolderWeights(Path(init), self.config.geometry()) if init else None
        self._training = Training(self.config, self._gate, initial=initial)
        self._folder, self._updates = folder, 0
        self._write_inputs()
        self._stack = ExitStack()
        self._stack.enter_context(gemm_settings(self.config))
        graph = self._training.graph()
        # Without a watchdog: between requests the run makes no progress.
        run = graph.start(resources=self._training.resources, label=label, watchdog=None)
        self._run: Any = self._stack.enter_context(run)
        self._stack.callback(self._gate.allow, ENDLESS)  # releases a stage that waits at the gate

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures; filling and draining the pipeline count."""
        losses: list[float] = []
        norms: list[float] = []
        begin = time.perf_counter()
        self._gate.allow(updates)
        while len(losses) < updates:
            event = next(iter(self._run))
            assert isinstance(event, Update)
            assert event.loss is not None, "all random tokens count"
            losses.append(event.loss)
            norms.append(event.grad_norm)
        seconds = time.perf_counter() - begin
        self._updates += updates
        self._write_inputs()
        return UpdateFigures(seconds, losses, norms)

    def _write_inputs(self) -> None:
        left = CHECKED_UPDATES - self._updates
        if self._folder and left > 0:
            with self._training.banks.lease_newest() as lease:
                weights = dict(lease.bank.arena.items())
                write_inputs(self._folder, weights, self._source, self.config, left, first=self._updates)

    def close(self) -> None:
        """End the pipeline's threads."""
        self._stack.close()
