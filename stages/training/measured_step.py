"""One way of training, measured in a process of its own: `threadloom bench` starts these and tells them what to do.

It computes while it is asked to, and is idle between (`stages.console.json_worker`). Its memory is `peak`, `base`, what
it held before training was built, and `plan`, what was then allocated.

`--start` is another thing: a fresh process that says how long it took from its start to the first update.
"""

import contextlib
import json
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from threadloom.stages.console import (
    JsonWorkerProcess,
    module_command,
    redirect_stdout_to_stderr,
    resident_bytes,
    serve,
)

ENDLESS = 1_000_000_000


class ExecutionMode(Enum):
    """How the updates are made; the value is what tables say."""

    REPLAY = "one thread"
    STAGES = "stage by stage"
    PIPELINE = "pipeline"


@dataclass(frozen=True)
class Rates:
    """What some updates took, in the steady state."""

    updates: int
    seconds: float
    busy: dict[str, float]
    """Seconds inside each stage, summed over its threads, during all updates of the round: `drawn` many."""
    drawn: int


class MeasuredStepWorker(JsonWorkerProcess):
    """A way of training in its process."""

    def __init__(self, config: str, way: ExecutionMode, cores: int) -> None:
        """`config`: resolved, as JSON."""
        self.way = way
        task = {"way": way.name, "cores": cores, "config": config}
        super().__init__(module_command("threadloom.stages.training.measured_step"), task)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"the measurement of {self.way.value}"

    def run(self, updates: int) -> Rates:
        """Let it make updates, and some before and after them that fill and drain the pipeline."""
        return Rates(**self.request({"run": updates}))


class StepGate:
    """A batch source that lets batches through up to a number: beyond, the pipeline runs empty and waits, idle."""

    def __init__(self, source: Any) -> None:
        import threading

        self._source = source
        self._allowed = 0  # batches; under the condition's lock
        self._changed = threading.Condition()

    def allow(self, more: int) -> None:
        """Let so many more batches through."""
        with self._changed:
            self._allowed += more
            self._changed.notify_all()

    def fill(self, batch: int, micro: int, ids: Any, targets: Any) -> None:
        """Wait for the batch's turn, then draw the micro-batch."""
        with self._changed:
            self._changed.wait_for(lambda: batch < self._allowed)
        self._source.fill(batch, micro, ids, targets)


class MeasuredStepRunner:
    """The training of one way, stopped between rounds."""

    def __init__(self, text: str, way: ExecutionMode, cores: int) -> None:
        """`text`: the resolved configuration."""
        from threadloom.stages.data import random_batches
        from threadloom.stages.resolve import numerics, resolved_from_json
        from threadloom.stages.training.sequential import replay, stage_by_stage
        from threadloom.stages.training.training import Training
        from threadloom.stages.training.warmup import compile_kernels

        self.config = resolved_from_json(text)
        compile_kernels(lambda _: None, self.config.precision)
        self.base = resident_bytes()
        self.way = way
        self._gate = StepGate(random_batches(self.config))
        self._training = Training(self.config, self._gate)
        self.plan = sum(self._training.memory().values())
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(numerics(self.config))
        self._run: Any = None
        if way is ExecutionMode.PIPELINE:
            graph = self._training.graph()
            self._run = self._stack.enter_context(graph.start(resources=self._training.resources))
            self._stack.callback(self._gate.allow, ENDLESS)  # a stage that waits for its turn could not end
            self._events: Iterable[Any] = self._run
        else:
            self._gate.allow(ENDLESS)
            made = replay(self._training) if way is ExecutionMode.REPLAY else stage_by_stage(self._training, cores)
            sequence = cast(Generator[Any], made)  # its end ends the threads of its own
            self._events = sequence
            self._stack.callback(sequence.close)

    def run(self, updates: int) -> Rates:
        """Make updates; the first ones, while the pipeline fills, and the last ones, while it drains, do not count."""
        apart = self.config.delay + 1 if self.way is ExecutionMode.PIPELINE else 1
        drawn = updates + 2 * apart
        before = self._run.statistics() if self._run else None
        if self._run:
            self._gate.allow(drawn)
        moments = [next(iter(self._events)).seconds for _ in range(drawn)]
        busy = {}
        if self._run:
            lately = self._run.statistics().since(before)
            busy = {stage.name: stage.busy for stage in lately.stages if stage.name not in ("plan", "draw", "events")}
        return Rates(updates, moments[apart + updates - 1] - moments[apart - 1], busy, drawn)

    def memory(self) -> dict[str, int]:
        """Return the bytes held before the training was built, and those of its memory plan."""
        return {"base": self.base, "plan": self.plan}

    def close(self) -> None:
        """End the threads."""
        self._stack.close()


def time_to_first_update(begin: float, text: str) -> dict[str, float]:
    """Return the seconds since `begin`, a time.monotonic() of the parent, at each point up to the first update."""
    reached = {"interpreter": time.monotonic() - begin}
    from threadloom.stages.data import random_batches
    from threadloom.stages.resolve import numerics, resolved_from_json
    from threadloom.stages.training.training import Training
    from threadloom.stages.training.warmup import compile_kernels

    reached["imports"] = time.monotonic() - begin
    config = resolved_from_json(text)
    compile_kernels(lambda _: None, config.precision)
    reached["kernels"] = time.monotonic() - begin
    training = Training(config, random_batches(config))
    reached["memory and weights"] = time.monotonic() - begin
    with numerics(config), training.graph().start(resources=training.resources) as run:
        next(iter(run))
        reached["first update"] = time.monotonic() - begin
    return reached


def main() -> None:
    """Serve requests; with a start time as an argument, reply once with the times to the first update."""
    if len(sys.argv) > 1:
        replies = redirect_stdout_to_stderr()
        replies.write(json.dumps(time_to_first_update(float(sys.argv[1]), sys.stdin.read())) + "\n")
        return
    serve(lambda task: MeasuredStepRunner(task["config"], ExecutionMode[task["way"]], task["cores"]))


if __name__ == "__main__":
    main()
