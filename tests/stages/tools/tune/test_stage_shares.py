"""The bottleneck of a trial as text, from made-up loads and from the statistics of a run."""

from threadloom.pipeline import Graph
from threadloom.stages.config import Gemm
from threadloom.stages.resolve import TunedSettings
from threadloom.stages.tools.tune.search import Trial, search
from threadloom.stages.tools.tune.space import Limits
from threadloom.stages.tools.tune.stage_shares import StageShares, describe_bottleneck, shares_of
from threadloom.stages.tools.tune.table import conclusions

FORWARD = StageShares("forward", 2, 0.55, 0.04, 0.41)
BACKWARD = StageShares("backward", 2, 0.96, 0.03, 0.01)
UPDATE = StageShares("update", 1, 0.12, 0.88, 0.0)
PLAIN = StageShares("collect", 1, 0.01, 0.99, 0.0)


def test_the_busiest_the_blocked_and_the_waiting_stage_are_named() -> None:
    assert describe_bottleneck([FORWARD, BACKWARD, UPDATE, PLAIN]) == (
        "backward (2 threads) was busy 96% of the time, forward (2 threads) was blocked 41% and update waited 88%"
    )


def test_stages_that_hardly_wait_or_only_pass_items_on_are_not_named() -> None:
    assert describe_bottleneck([BACKWARD, PLAIN]) == "backward (2 threads) was busy 96% of the time"
    assert describe_bottleneck([BACKWARD, UPDATE]) == (
        "backward (2 threads) was busy 96% of the time and update waited 88%"
    )
    assert describe_bottleneck([]) == ""


def test_loads_are_those_of_stages_with_items() -> None:
    graph = Graph("two")
    work = graph.stage("work", lambda item: item, after=graph.source("read", range(100)), workers=2)
    graph.stage("never", lambda item: item, after=work, when=lambda item: False)
    (load,) = shares_of(graph.run())
    assert (load.name, load.threads) == ("work", 2)
    assert abs(load.busy + load.waiting + load.blocked - 1.0) < 1e-6


def test_every_step_to_the_choice_is_explained_by_the_bottleneck_before_it() -> None:
    default = TunedSettings(
        micro_batch=4, lanes=2, gemm=Gemm.NUMBA, blas=1, forward=1, backward=1, reduce=1, update=1, slots=6,
        channel_capacity=2,
    )  # fmt: skip

    def trial(choice: TunedSettings) -> Trial:
        both = (choice.forward, choice.backward) == (2, 2)
        speed = 1000.0 * (1.5 if both else 1.0) * (1.1 if choice.update == 2 else 1.0)
        return Trial(speed, 1.0, stages=(FORWARD, UPDATE) if both else (BACKWARD, FORWARD))

    found = search(default, Limits(2, 16, 16, (Gemm.NUMBA,)), trial, 1000.0)
    said = conclusions(found)
    assert any(
        sentence.startswith("threads.forward=2 threads.backward=2, 1.50 times as fast: before it, backward (2 threads)")
        for sentence in said
    )
    assert any("threads.update=2" in line and "before it, forward (2 threads) was busy 55%" in line for line in said)
    assert "With the choice, forward (2 threads) was busy 55% of the time and update waited 88%." in said

    flat = search(default, Limits(2, 16, 16, (Gemm.NUMBA,)), lambda _: Trial(1.0, 1.0, stages=(BACKWARD,)), 1000.0)
    assert "With the defaults, backward (2 threads) was busy 96% of the time." in conclusions(flat)
