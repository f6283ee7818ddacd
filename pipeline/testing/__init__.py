"""Fault injection: runs any graph under exceptions, delays, worker deaths, cancellation and Ctrl-C, from a seed.

    from threadloom.pipeline.testing import hammer

    def build() -> Graph:
        ...

    def test_my_pipeline_survives_anything() -> None:
        hammer(build, range(200))

Each seed determines a plan of faults. The graph is run under it, and the promises of the engine are checked: each item
is delivered once or accounted for, order is kept, depths are bounded, the first error is reported and no other, the run
ends promptly, statistics add up, and no thread, process, file descriptor, shared-memory segment or pool element is
leaked. A failure names its seed.

    faults, leaks             faults and plans of them; the resources that a process holds: data
    journal                   a record of the events of a run, independent of the engine's counters
    injection, instrument     injects the faults of a plan; wraps the functions of a graph so that they report
    async_wrappers            the same for coroutine functions and asynchronous sources
    drained                   those of a run that was drained after a failure
    invariants                the conditions that must hold after a run, as functions of the record
    harness                   `exercise` runs one plan, `hammer` many
    random_graphs             graphs determined by a seed, with a model of their output

May import: all above.
"""

from threadloom.pipeline.testing.faults import Fault, FaultKind, FaultPlan, InjectedFault
from threadloom.pipeline.testing.harness import FaultReport, InvariantBroken, Subject, exercise, hammer
from threadloom.pipeline.testing.injection import Fired
from threadloom.pipeline.testing.leaks import ResourceSnapshot, left_behind
from threadloom.pipeline.testing.random_graphs import random_subject

__all__ = [
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FaultReport",
    "Fired",
    "InjectedFault",
    "InvariantBroken",
    "ResourceSnapshot",
    "Subject",
    "exercise",
    "hammer",
    "left_behind",
    "random_subject",
]
