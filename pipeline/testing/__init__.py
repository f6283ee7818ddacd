"""Faults on purpose: any pipeline under exceptions, delays, deaths of workers, cancellation and Ctrl-C, from a seed.

    from threadloom.pipeline.testing import hammer

    def build() -> Graph:
        ...

    def test_my_pipeline_survives_anything() -> None:
        hammer(build, range(200))

Each seed makes a plan of faults, runs the graph under it, and checks what the engine promises: each item delivered
once or accounted for, order kept, depths bounded, the first error reported and no other, a prompt end, statistics that
add up, and no thread, process, file descriptor, shared-memory segment or pool element left behind. A failure names its
seed.

    faults, leaks     what goes wrong, and what a process holds: data
    journal           what happened, written down by wrapped functions
    invariants        what must hold, as functions of that
    harness           runs and reports: `exercise` one plan, `hammer` many
    random_graphs     graphs made from a seed, with a model of what comes out of them
"""

from threadloom.pipeline.testing.faults import Fault, FaultKind, FaultPlan, InjectedFault
from threadloom.pipeline.testing.harness import FaultReport, InvariantBroken, Subject, exercise, hammer
from threadloom.pipeline.testing.journal import Fired
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
