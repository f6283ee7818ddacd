"""Threads that move while a training runs do not change a bit, and stay within the memory that was allocated."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.stages.support import SEVERAL_CHUNKS, assert_same, build, planned, result, tiny
from tests.stages.training.support import replayed
from threadloom.pipeline import BalanceRules, WorkerChange
from threadloom.stages.memory.graph_items import Event, label
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(120)

EAGER = BalanceRules(saturated=0.0, spare=1.0, confirm=1, settle=0, judge=1, rest=0, gain=0.0, change=0.0)
"""Moves a thread to the busiest stage on every occasion, and often back."""
HOUR = 3600.0
COMMON = (*SEVERAL_CHUNKS, "lanes=3", "steps=24", "evaluation.interval=9", "threads.control=true")


def run_controlled(training: Training) -> tuple[list[Event], Sequence[WorkerChange]]:
    """Run the training as a pipeline, whose controller decides after every event."""
    controller = training.controller()
    assert controller is not None
    eager = replace(controller, interval=HOUR, rules=EAGER)
    with training.graph().start(resources=training.resources, label=label, controller=eager) as run:
        assert run.worker_control is not None
        events = []
        for event in run:
            events.append(event)
            run.worker_control.step()
    return events, run.worker_changes


@pytest.mark.parametrize("shared", ["false", "true"])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize(
    "counts",
    [
        {"forward": 3, "backward": 1, "embed": 1, "reduce": 1, "update": 2},
        {"forward": 1, "backward": 3, "embed": 2, "reduce": 2, "update": 1},
    ],
    ids=["from forward", "from backward"],
)
def test_threads_that_move_do_not_change_a_bit(counts: dict[str, int], delay: int, shared: str) -> None:
    common = (*COMMON, f"delay={delay}", f"shared_lanes={shared}")
    expected = replayed(tiny(*common))
    config = tiny(*common, *(f"threads.{name}={count}" for name, count in counts.items()), "slots=5")
    training = build(config, evaluate=True)
    controller = training.controller()
    assert controller is not None and controller.limits is not None
    events, changes = run_controlled(training)
    assert_same(result(training, events), expected)
    assert changes, "nothing moved"
    for change in changes:
        assert sum(change.workers.values()) <= sum(counts.values())
        assert all(1 <= count <= controller.limits[name] for name, count in change.workers.items())
        assert change.workers["backward"] <= training.config.max_concurrent_backward


def test_the_memory_plan_counts_the_threads_that_backward_may_get() -> None:
    threads = ("threads.forward=3", "threads.backward=1", "lanes=3")
    fixed, controlled = tiny(*threads), tiny(*threads, "threads.control=true")
    assert (fixed.max_concurrent_backward, controlled.max_concurrent_backward) == (1, 3)
    assert planned(controlled)["backward scratch"] == 3 * planned(fixed)["backward scratch"]
    shared = tiny(*threads, "shared_lanes=true", "threads.control=true")
    assert shared.max_concurrent_backward == 1


def test_the_controller_is_off_by_default() -> None:
    assert build(tiny()).controller() is None
    changes: list[WorkerChange] = []
    controller = build(tiny("threads.control=true", "threads.forward=4", "slots=2")).controller(changes.append)
    assert controller is not None and controller.limits is not None
    assert controller.on_change == changes.append
    assert controller.limits["forward"] == 4  # not less than it starts with
    assert controller.limits["embed"] == 2
