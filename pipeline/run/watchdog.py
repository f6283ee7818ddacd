"""The watchdog thread of a run: notices a stalled run, and an item that exceeds the time limit of its stage.

`stall_detection` has the decisions.

Guarantees: the thread sleeps until the next moment at which something can be due, which is at most four times per
`after` seconds and once per time limit. It reports a stall once, and again only after progress. A time limit is
noticed after it has passed, never before. The thread ends with its run.

Ownership: the `StallTimer` belongs to the watchdog thread.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.core import OneShotEvent, PipelineError, StageFailure, Stalled
from threadloom.pipeline.run.stall_detection import StallTimer, WorkerSnapshot, find_blocker, next_check, overdue

LOG = logging.getLogger("threadloom.pipeline.watchdog")


class OnStall(Enum):
    """The watchdog's action on a stalled run."""

    LOG = "log"
    """Log a warning to the logger `threadloom.pipeline.watchdog` and keep waiting."""
    FAIL = "fail"
    """Fail the run, with `Stalled` as the cause."""


@dataclass(frozen=True)
class StallReport:
    """The worker or sink that a stalled run waits for."""

    stage: str
    """Name of the stage or sink."""
    worker: int
    """Index of the worker within its stage; 0 for a sink."""
    thread: str
    """Name of the worker's thread; empty for a sink."""
    item: str
    """The worker's item, formatted."""
    doing: str
    """The state of the worker as a phrase, for example "has been inside its function"."""
    seconds: float
    """Seconds in this state."""
    stack: str
    """The current stack of the thread, formatted like a traceback; empty for a sink."""

    def __str__(self) -> str:
        where = f"\nthread {self.thread!r} is at:\n{self.stack}" if self.thread else ""
        return (
            f"stage {self.stage!r} (worker {self.worker}) {self.doing} for {self.seconds:.3g} s, on {self.item}{where}"
        )


@dataclass(frozen=True)
class Watchdog:
    """Settings of the watchdog, for `start(watchdog=...)`. With None only the time limits of stages are enforced."""

    after: float = 60.0
    """Seconds without progress in any stage or sink after which the run counts as stalled."""
    act: OnStall | Callable[[StallReport], object] = OnStall.LOG
    """The action on a stall. A function is called in the watchdog thread; if it raises, the run fails."""

    def __post_init__(self) -> None:
        if self.after <= 0:
            raise ValueError(f"a Watchdog needs after > 0 seconds, got {self.after}")


@dataclass(frozen=True)
class RunInspector:
    """The functions of a run that its watchdog uses."""

    inspect: Callable[[], tuple[object, Sequence[WorkerSnapshot]]]
    """Returns a value that changes with every counted item, and a snapshot of each worker and sink; no snapshots while
    the run is paused."""
    describe: Callable[[WorkerSnapshot, str], StallReport]
    handle_late: Callable[[WorkerSnapshot, float], None]
    """Replaces a worker whose call has taken longer than the limit in seconds, or fails the run."""
    fail: Callable[[StageFailure], None]
    now: Callable[[], float]
    """The run's clock, in seconds."""
    decided: OneShotEvent
    """Set once the outcome of the run is decided."""


class WatchdogThread:
    """The watchdog of one run; `run` is the target of its thread and sets `ended` as its last action."""

    def __init__(self, config: Watchdog | None, limits: Mapping[str, float], inspector: RunInspector) -> None:
        self._config = config
        self._limits = limits
        self._inspector = inspector
        self.ended = OneShotEvent()

    def run(self) -> None:
        """Check the run until its outcome is decided."""
        inspector, config = self._inspector, self._config
        timer = StallTimer(config.after, inspector.now()) if config else None
        snapshots: Sequence[WorkerSnapshot] = ()
        try:
            while not inspector.decided.wait(next_check(snapshots, self._limits, config.after if config else None)):
                progress, snapshots = inspector.inspect()
                late = overdue(snapshots, self._limits)
                if late is not None:
                    inspector.handle_late(late, self._limits[late.stage])
                    snapshots = ()  # those of the next check: the late worker may have been replaced
                    continue
                blocker = find_blocker(snapshots)
                if not config or not timer:
                    continue
                if timer.update(inspector.now(), progress, blocker is not None) and blocker is not None:
                    self._act(config, inspector.describe(*blocker))
        except Exception as error:
            inspector.fail(StageFailure("watchdog", 0, {}, "a stalled run", error))
        finally:
            self.ended.set()

    def _act(self, config: Watchdog, report: StallReport) -> None:
        message = f"no progress for {config.after:g} s: {report}"
        match config.act:
            case OnStall.LOG:
                LOG.warning("%s", message)
            case OnStall.FAIL:
                self._fail(report, Stalled(message))
            case act:
                act(report)

    def _fail(self, report: StallReport, error: PipelineError) -> None:
        self._inspector.fail(StageFailure(report.stage, report.worker, {}, report.item, error))
