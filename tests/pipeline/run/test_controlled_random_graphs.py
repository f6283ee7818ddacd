"""Random graphs whose workers move after every item deliver what the model of their output says."""

import threading
from collections import Counter

import pytest

from tests.pipeline.run.controlled_line import HOUR
from threadloom.pipeline import BalanceRules, Controller, Run
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.testing.random_graphs import random_subject

pytestmark = pytest.mark.timeout(120)

EAGER = BalanceRules(saturated=0.0, spare=1.0, confirm=1, settle=0, judge=1, rest=0, gain=0.0, change=0.0)
MOST = 4
"""Workers per stage; random graphs have no more."""


def may_be_controlled(stage: Stage) -> bool:
    """Return True if the workers of a stage may change; those of stages that wait for a small pool may not."""
    collects = stage.workers == 1 and hasattr(stage.fn, "flush")
    return stage.kind is NodeKind.STAGE and stage.concurrency is None and not stage.acquire and not collects


class Consumer(threading.Thread):
    """A thread that iterates one sink; the one that decides lets the controller do so after each item."""

    def __init__(self, run: Run, sink: str, decides: bool) -> None:
        super().__init__(name=f"consumer of {sink}")
        self.items: list[int] = []
        self._run, self._sink, self._decides = run, sink, decides

    def run(self) -> None:
        control = self._run.worker_control
        assert control is not None
        for item in self._run.items(self._sink):
            self.items.append(item)
            if self._decides:
                control.step()


def test_random_graphs_deliver_the_same_items_in_the_same_order() -> None:
    changes = 0
    for seed in range(60):
        subject = random_subject(seed)
        controlled = [stage for stage in subject.graph.stages if may_be_controlled(stage)]
        budget = sum(stage.workers for stage in controlled) + 2
        controller = Controller(HOUR, {stage.name: MOST for stage in controlled}, budget, EAGER)
        assert subject.expected is not None
        with subject.graph.start(controller=controller, resources=subject.resources) as run:
            consumers = {
                name: Consumer(run, name, decides=place == 0) for place, name in enumerate(sorted(subject.expected))
            }
            for each in consumers.values():
                each.start()
            for each in consumers.values():
                each.join()
        changes += len(run.worker_changes)
        for name, expected in subject.expected.items():
            found, wanted = consumers[name].items, list(expected)
            assert Counter(found) == Counter(wanted), f"seed {seed}"
            assert found == wanted or name not in subject.ordered, f"seed {seed}"
    assert changes > 0
