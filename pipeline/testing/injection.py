"""Fault injection: the faults of a plan occur inside the wrapped functions of a graph, each at its call and once.

Ownership: `run` is set by the thread of the harness, and each entry of `workers` by its own thread. Everything else is
guarded by the lock of the journal.
"""

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.processes import ProcessWorker
from threadloom.pipeline.run import Run
from threadloom.pipeline.testing.actions import drop_iterator, fork, leave_garbage, pause
from threadloom.pipeline.testing.faults import STOPPING, Fault, FaultKind, FaultPlan, InjectedFault, PolicyFault
from threadloom.pipeline.testing.journal import Journal

ON_RUN: dict[FaultKind, Callable[[Run, Fault], object]] = {
    FaultKind.CANCEL: lambda run, fault: run.cancel(),
    FaultKind.PAUSE: lambda run, fault: pause(run, fault.amount / 1000),
    FaultKind.RESIZE: lambda run, fault: run.resize(fault.stage, workers=int(fault.amount)),
    FaultKind.DRAIN: lambda run, fault: run.drain(),
    FaultKind.FINALISER: lambda run, fault: leave_garbage(run, int(fault.amount)),
    FaultKind.FORK: lambda run, fault: fork(run),
}
"""Kinds that act on the run, with the action."""
RAISED: dict[FaultKind, type[BaseException]] = {
    FaultKind.RAISE: InjectedFault,
    FaultKind.EXIT: SystemExit,
    FaultKind.POLICY: PolicyFault,
}
"""Kinds that raise, with the type of the exception."""


@dataclass(frozen=True)
class Fired:
    """A fault that occurred."""

    fault: Fault
    late: bool
    """True if the outcome of the run was decided before, so that this fault must not be reported."""
    when: float
    """time.monotonic() of the fault."""
    error: BaseException | None = None
    """The exception, for kinds that raise in the stage's or the caller's code."""


class FaultInjector:
    """Injects the faults of one plan into one run."""

    def __init__(self, plan: FaultPlan, journal: Journal) -> None:
        self.fired: list[Fired] = []
        """The faults that have occurred, in order."""
        self.run: Run | None = None
        self.workers: dict[threading.Thread, ProcessWorker[Any, Any]] = {}
        """The process worker of each thread that has one."""
        self.interruptible = False
        """True while an INTERRUPT can reach the run."""
        self._journal = journal
        self._faults: dict[tuple[str, int], list[Fault]] = defaultdict(list)
        for fault in plan.faults:
            self._faults[fault.stage, fault.at].append(fault)

    def end_interrupts(self) -> None:
        """Suppress INTERRUPT faults from now on; one that has occurred is raised before this method returns."""
        with self._journal.lock:
            self.interruptible = False

    def inject(self, name: str, number: int, *, after: bool) -> None:
        """Inject the faults of call `number` of a node, those that let the call continue first."""
        faults = [fault for fault in self._faults.get((name, number), ()) if fault.after == after]
        for fault in sorted(faults, key=lambda each: each.kind in STOPPING):
            self._inject(fault)

    def _inject(self, fault: Fault) -> None:
        late = self.run is None or self.run.outcome is not None
        error = RAISED[fault.kind](f"{fault.stage} {fault.at}") if fault.kind in RAISED else None
        with self._journal.lock:
            if fault.kind is FaultKind.INTERRUPT and not self.interruptible:
                return
            self.fired.append(Fired(fault, late, time.monotonic(), error))
            if fault.kind is FaultKind.INTERRUPT:
                # To the main thread itself: a signal to the process may be delivered to a thread that cannot wake it.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if error is not None:
            raise error
        if self.run is not None and fault.kind in ON_RUN:
            ON_RUN[fault.kind](self.run, fault)
        elif fault.kind is FaultKind.KILL:
            self._kill(fault.amount)
        elif fault.kind is FaultKind.DROP:
            drop_iterator()
        elif fault.kind is FaultKind.DELAY:
            time.sleep(fault.amount / 1000)
        elif fault.kind is FaultKind.HOLD:
            self._journal.await_events(int(fault.amount))

    def _kill(self, milliseconds: float) -> None:
        worker = self.workers[threading.current_thread()]
        pid = worker.pid
        if pid is not None:
            kill = threading.Timer(milliseconds / 1000, worker.kill_process, (pid,))
            kill.start()
            if not milliseconds:
                kill.join()
