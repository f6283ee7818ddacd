"""Tests of the controller on made-up statistics: faults, and the settings that it accepts."""

import gc
import weakref
from dataclasses import replace

import pytest

from tests.pipeline.run.controlled_line import HOUR, QUICK, Work, line
from threadloom.pipeline import (
    ChannelStatistics,
    Controller,
    Gather,
    Graph,
    GraphError,
    RunStatistics,
    StageStatistics,
    WorkerChange,
)
from threadloom.pipeline.core import OneShotEvent
from threadloom.pipeline.policy import RunState
from threadloom.pipeline.run.worker_control import ControlledRun, WorkerControl

pytestmark = pytest.mark.timeout(60)


class Figures:
    """Statistics of a run that does not exist: `decode` starves, `encode` is busy."""

    def __init__(self) -> None:
        self.workers = {"decode": 3, "encode": 2}
        self.elapsed = 0.0
        self.broken: set[tuple[str, int]] = set()
        self.resized: list[tuple[str, int]] = []
        self.state = RunState.RUNNING

    def statistics(self) -> RunStatistics:
        self.elapsed += 1.0
        parts = {"decode": (0.1, 0.9), "encode": (1.0, 0.0)}
        stages = []
        for name, (busy, starved) in parts.items():
            seconds = self.elapsed * self.workers[name]
            channel = ChannelStatistics(2, 0, 0.0, 0, int(10 * self.elapsed), 0.0, starved * seconds)
            stages.append(
                StageStatistics(
                    name, self.workers[name], int(10 * self.elapsed), int(10 * self.elapsed),
                    busy * seconds, starved * seconds, 0.0, channel,
                )
            )  # fmt: skip
        return RunStatistics("figures", self.elapsed, tuple(stages))

    def resize(self, stage: str, workers: int) -> None:
        self.resized.append((stage, workers))
        if (stage, workers) in self.broken:
            raise RuntimeError("can't start new thread")
        self.workers[stage] = workers

    def control(self, controller: Controller, changes: list[WorkerChange]) -> WorkerControl:
        graph = line(Work(), Work(), [1])
        graph.resize("decode", workers=3)
        run = ControlledRun(self.statistics, self.resize, lambda stage, workers: None, lambda: self.state, EVENT)
        return WorkerControl(controller, "figures", graph.stages, run, changes)


EVENT = OneShotEvent()


@pytest.mark.parametrize(
    ("broken", "resized"),
    [
        (("decode", 2), [("decode", 2)]),
        (("encode", 3), [("decode", 2), ("encode", 3), ("encode", 2), ("decode", 3)]),
    ],
)
def test_a_stage_that_cannot_be_resized_is_left_alone(
    broken: tuple[str, int], resized: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    figures, changes = Figures(), list[WorkerChange]()
    figures.broken.add(broken)
    control = figures.control(Controller(HOUR, rules=QUICK), changes)
    for _ in range(20):
        control.step()
    assert figures.resized == resized
    assert figures.workers == {"decode": 3, "encode": 2}
    assert changes == []
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the controller of graph 'figures' leaves stage '{broken[0]}' alone from now on: "
        "RuntimeError: can't start new thread"
    )


def test_errors_of_on_change_and_of_the_controller_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: WorkerChange) -> None:
        raise ValueError("no")

    figures, changes = Figures(), list[WorkerChange]()
    control = figures.control(Controller(HOUR, rules=QUICK, on_change=fail), changes)
    for _ in range(3):
        control.step()
    assert [change.workers for change in changes] == [{"decode": 2, "encode": 3}]
    assert "on_change of the controller of graph 'figures' failed" in caplog.text
    broken = Figures().control(Controller(0.0001), [])
    broken._run = None  # type: ignore[assignment]
    broken.run()
    assert broken.ended.is_set
    assert "the controller of graph 'figures' failed; the run continues without it" in caplog.text


def test_a_controlled_run_is_freed_without_the_garbage_collector() -> None:
    graph = line(Work(), Work(), range(100))
    with graph.start(controller=Controller(0.0005)) as run:
        list(run)
    reference = weakref.ref(run)
    gc.collect()
    gc.disable()
    try:
        del run
        assert reference() is None
    finally:
        gc.enable()


def test_stages_and_limits_of_a_controller() -> None:
    def slow(item: int) -> int:
        return item

    async def later(item: int) -> int:
        return item

    class Batches:
        def __call__(self, item: int) -> int:
            return item

        def flush(self) -> list[int]:
            return []

    graph = Graph("limits")
    read = graph.source("read", range(10))
    one = graph.stage("one", slow, after=read)
    many = graph.stage("many", slow, after=one, workers=3)
    pooled = graph.stage("pooled", slow, after=many, workers=2, acquire=lambda item: None)
    waits = graph.stage("waits", later, after=pooled, workers=2)
    graph.sink("out", after=graph.stage("batches", Batches(), after=waits))
    assert Controller().limits_for("limits", graph.stages) == {"many": 5, "pooled": 2}
    assert Controller(budget=9).limits_for("limits", graph.stages) == {"many": 9, "pooled": 2}
    keyed = [
        replace(stage, admission=Gather(count=2, key=int)) if stage.name == "out" else stage for stage in graph.stages
    ]
    assert Controller().limits_for("limits", keyed) == {"many": 3, "pooled": 2}
    keyed = [replace(stage, ordered=stage.name == "many") for stage in keyed]
    assert Controller().limits_for("limits", keyed) == {"many": 5, "pooled": 2}
    chosen = Controller(limits={"one": 4, "pooled": 3})
    assert chosen.limits_for("limits", graph.stages) == {"one": 4, "pooled": 3}
    for limits, message in {
        "nothing": r"controller of 'limits': there is no stage 'nothing'; the stages are \['one', 'many', ",
        "read": "there is no stage 'read'",
        "waits": "workers of stage 'waits' cannot be changed, because it runs coroutines",
        "batches": "workers of stage 'batches' cannot be changed, because its function is an object with flush",
    }.items():
        with pytest.raises(GraphError, match=message):
            graph.start(controller=Controller(limits={limits: 3}))
    with pytest.raises(GraphError, match="stage 'many' starts with 3 workers, got limit 2"):
        graph.start(controller=Controller(limits={"many": 2}))
    with pytest.raises(GraphError, match="the controlled stages start with 5 workers, more than budget=4"):
        graph.start(controller=Controller(budget=4))
    with pytest.raises(GraphError, match="controller to be a Controller, such as"):
        graph.start(controller=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an interval of more than 0 seconds, got 0"):
        Controller(interval=0)
