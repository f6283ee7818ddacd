"""Updates in a worker process, measured: one process per execution mode, driven by `threadloom bench`.

The worker computes on request and is idle between requests (`stages.console.json_worker`).
"""

import contextlib
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import msgspec

from threadloom.stages.config import ResolvedConfig
from threadloom.stages.console import JsonWorkerProcess, module_command, resident_bytes
from threadloom.stages.data import BatchSource, RandomTokens, TokenIds, fill_starts
from threadloom.stages.resolve import gemm_settings, resolved_from_json
from threadloom.stages.training.sequential import replay, stage_by_stage
from threadloom.stages.training.training import Training
from threadloom.stages.training.warmup import compile_kernels_of

ENDLESS = 1_000_000_000
"""Number of updates of a run that is measured: more than any measurement needs."""


class ExecutionMode(Enum):
    """How the stages are executed; the value is the name in tables."""

    REPLAY = "one thread"
    STAGES = "stage by stage"
    PIPELINE = "pipeline"


@dataclass(frozen=True)
class StepTimes:
    """Times of consecutive updates in the steady state."""

    updates: int
    seconds: float
    """Wall time of `updates` updates."""
    busy: dict[str, float]
    """Seconds inside each stage, summed over its threads, during `drawn` updates."""
    drawn: int
    """Updates of the whole round, including those that fill and drain the pipeline."""


class MeasuredStepWorker(JsonWorkerProcess):
    """A worker process that trains in one execution mode."""

    def __init__(self, config: str, mode: ExecutionMode, cores: int) -> None:
        """`config` is a resolved configuration as JSON."""
        self.mode = mode
        task = {"mode": mode.name, "cores": cores, "config": config}
        super().__init__(module_command("threadloom.stages.child_processes.measured_step"), task)

    @property
    def name(self) -> str:
        """The name of the process in messages."""
        return f"the process that measures {self.mode.value!r}"

    def run(self, updates: int) -> StepTimes:
        """Return the times of `updates` updates; others before and after them fill and drain the pipeline."""
        return StepTimes(**self.request({"run": updates}))


class StepGate:
    """A batch source that blocks batches beyond a limit: the pipeline drains and is idle until the limit is raised."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._allowed = 0  # batches; guarded by the condition
        self._changed = threading.Condition()

    def allow(self, more: int) -> None:
        """Raise the limit by `more` batches."""
        with self._changed:
            self._allowed += more
            self._changed.notify_all()

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Wait until the batch is allowed, then draw the micro-batch."""
        with self._changed:
            self._changed.wait_for(lambda: batch < self._allowed)
        self._source.fill(batch, micro, ids, targets)

    def counted(self, batch: int) -> int:
        """Return how many targets of a batch count."""
        return self._source.counted(batch)

    def fill_starts(self, batch: int, micro: int, starts: TokenIds) -> None:
        """Write the borders of a micro-batch that has been drawn."""
        fill_starts(self._source, batch, micro, starts)


class MeasuredStepRunner:
    """A training in one execution mode that advances on request; runs in the worker process."""

    def __init__(self, text: str, mode: ExecutionMode, cores: int) -> None:
        """`text` is a resolved configuration as JSON."""
        self.config: ResolvedConfig = _with_full_context(resolved_from_json(text))
        compile_kernels_of(self.config, lambda _: None)
        self._base = resident_bytes()
        self._mode = mode
        self._gate = StepGate(RandomTokens(self.config.geometry(), self.config.batch_sizes, self.config.seed))
        self._training = Training(self.config, self._gate)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(gemm_settings(self.config))
        self._run: Any = None
        if mode is ExecutionMode.PIPELINE:
            graph = self._training.graph()
            self._run = self._stack.enter_context(graph.start(resources=self._training.resources))
            self._stack.callback(self._gate.allow, ENDLESS)  # first on exit: a stage that waits at the gate cannot end
            self._events: Iterable[Any] = self._run
        else:
            self._gate.allow(ENDLESS)
            found = replay(self._training) if mode is ExecutionMode.REPLAY else stage_by_stage(self._training, cores)
            sequence = cast(Generator[Any], found)
            self._events = sequence
            self._stack.callback(sequence.close)  # ends its threads

    def run(self, updates: int) -> StepTimes:
        """Return the times of `updates` updates, excluding those that fill and drain the pipeline."""
        apart = self.config.delay + 1 if self._mode is ExecutionMode.PIPELINE else 1
        drawn = updates + 2 * apart
        before = self._run.statistics() if self._run else None
        if self._run:
            self._gate.allow(drawn)
        ends = [next(iter(self._events)).seconds for _ in range(drawn)]
        busy = {}
        if self._run:
            round_ = self._run.statistics().since(before)
            busy = {stage.name: stage.busy for stage in round_.stages if stage.name not in ("plan", "draw", "events")}
        return StepTimes(updates, ends[apart + updates - 1] - ends[apart - 1], busy, drawn)

    def memory(self) -> dict[str, int]:
        """Return the bytes held before the training was built (`base`) and those of its memory plan (`plan`)."""
        return {"base": self._base, "plan": sum(self._training.memory().values())}

    def close(self) -> None:
        """End the threads."""
        self._stack.close()


def _with_full_context(config: ResolvedConfig) -> ResolvedConfig:
    """Return a configuration without the warm-up of the sequence length: most updates of a run come after it."""
    schedule = msgspec.structs.replace(config.schedule, context_warmup=0, context_start=0)
    return msgspec.structs.replace(config, schedule=schedule)
