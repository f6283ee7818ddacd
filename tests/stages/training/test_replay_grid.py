"""One trajectory: the pipeline and its sequential replay compute the same bits, for all threads, sizes and timing."""

import itertools
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.support import SEVERAL_CHUNKS, Result, assert_same, build, result, run_sequence, run_threads, tiny
from tests.stages.training.support import replayed
from threadloom.pipeline import Trace

pytestmark = pytest.mark.timeout(300)  # a deadlock fails; the first run compiles kernels


def without_files(found: Result) -> Result:
    return Result(found.tensors, found.updates, found.evaluations, ())


@pytest.fixture(params=[None, 1e-6], ids=["usual-switches", "many-switches"])
def switches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test with the usual switch interval, and with one at which threads alternate all the time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(request.param or usual)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("delay", [0, 1, 2, 3])
@pytest.mark.parametrize("correction", ["none", "auto"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_threads_do_not_change_a_bit(every: int, correction: str, delay: int, lanes: int) -> None:
    """Of all pairs of thread counts and channels, one of `every` is run."""
    common = (
        f"delay_correction={correction}", f"delay={delay}", f"lanes={lanes}", "steps=5", "evaluation.interval=2",
    )  # fmt: skip
    expected = replayed(tiny(*common))
    workers, channels = ((1, 1), (2, 3), (3, 2), (1, 3), (3, 1)), ((1, 0), (2, 1), (8, 1))
    for (forward, backward), (capacity, spare) in list(itertools.product(workers, channels))[::every]:
        threads = (f"threads.forward={forward}", f"threads.backward={backward}", f"threads.embed={spare + 1}")
        sizes = (f"channel_capacity={capacity}", f"extra_banks={spare}", f"slots={capacity + 2}")
        training = build(tiny(*common, *threads, *sizes), evaluate=True)
        trace = Trace() if spare else None
        assert_same(result(training, run_threads(training, trace)), expected)
        assert trace is None or {"forward", "backward", "update"} <= {event.stage for event in trace.events()}


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("sizes", [(), SEVERAL_CHUNKS], ids=["one part", "a head of two parts"])
def test_threads_that_share_lanes_do_not_change_a_bit(sizes: tuple[str, ...], delay: int, lanes: int) -> None:
    common = (*sizes, f"delay={delay}", f"lanes={lanes}", "shared_lanes=true", "steps=5", "evaluation.interval=2")
    expected = replayed(tiny(*common))
    for forward, backward, slots in ((1, 1, 1), (2, 2, 2), (2, 4, 6), (3, 3, 4), (1, 4, 8)):
        threads = (f"threads.forward={forward}", f"threads.backward={backward}", f"threads.embed={forward}")
        training = build(tiny(*common, *threads, f"slots={slots}", "channel_capacity=1"), evaluate=True)
        assert_same(result(training, run_threads(training)), expected)


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_shards_of_reduction_and_update_do_not_change_a_bit(delay: int) -> None:
    """The arena has several chunks here, so that one, two or three threads share the shards."""
    common = (*SEVERAL_CHUNKS, f"delay={delay}", "lanes=3", "steps=4")
    expected = replayed(tiny(*common))
    shards = set()
    for reduce, update in itertools.product((1, 2, 3), repeat=2):
        training = build(tiny(*common, f"threads.reduce={reduce}", f"threads.update={update}"), evaluate=True)
        shards.add(training.shards.shards)
        assert_same(result(training, run_threads(training)), expected)
    assert shards == {2, 3}


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_a_run_with_minimal_memory_finishes(delay: int, lanes: int, tmp_path: Path) -> None:
    """One slot, capacity 1, no extra bank, more threads than work, an evaluation and a checkpoint per update."""
    common = (f"delay={delay}", f"lanes={lanes}", "steps=4", "evaluation.interval=1")
    for threads, slots in ((1, 1), (3, 1), (3, 2)):
        config = tiny(
            *common, f"slots={slots}", "channel_capacity=1", "extra_banks=0", "checkpoint.interval=1",
            f"checkpoint.copies={'true' if slots == 2 else 'false'}",
            *(f"threads.{stage}={threads}" for stage in ("forward", "backward", "reduce", "update", "embed")),
        )  # fmt: skip
        training = build(config, tmp_path / f"{threads}-{slots}", evaluate=True)
        found = result(training, run_threads(training))
        assert found.saved == (1, 2, 3, 4)
        assert [step for step, _ in found.evaluations] == [1, 2, 3, 4]
        assert_same(without_files(found), replayed(config))
        assert training.slots.statistics().most_lent <= slots


@cache
def configurations() -> st.SearchStrategy[tuple[str, ...]]:
    """Return overrides of settings that determine the trajectory and of all that must not affect it."""

    def setting(name: str, low: int, high: int) -> st.SearchStrategy[str]:
        return st.integers(low, high).map(lambda value: f"{name}={value}")

    return st.tuples(
        setting("delay", 0, 3),
        setting("lanes", 1, 4),
        st.sampled_from(["shared_lanes=true", "shared_lanes=false"]),
        setting("threads.forward", 1, 3),
        setting("threads.backward", 1, 3),
        setting("threads.reduce", 1, 3),
        setting("threads.update", 1, 3),
        setting("threads.embed", 1, 2),
        setting("channel_capacity", 1, 8),
        setting("slots", 1, 9),
        setting("extra_banks", 0, 1),
        setting("evaluation.interval", 0, 2),
        setting("checkpoint.interval", 0, 3),
        st.sampled_from(["checkpoint.copies=true", "checkpoint.copies=false"]),
    )


ANY = given(
    overrides=configurations(),
    wide=st.booleans(),
    traced=st.booleans(),
    checkpoints=st.booleans(),
    switch=st.sampled_from([1e-6, 1e-4, 5e-3]),
)


@settings(max_examples=15)
@ANY
def test_any_configuration_equals_its_replay(tmp_path_factory: pytest.TempPathFactory, **choice: Any) -> None:
    check_configuration(tmp_path_factory, **choice)


@pytest.mark.soak
@settings(max_examples=200)
@ANY
def test_many_configurations_equal_their_replay(tmp_path_factory: pytest.TempPathFactory, **choice: Any) -> None:
    check_configuration(tmp_path_factory, **choice)


def check_configuration(
    tmp_path_factory: pytest.TempPathFactory,
    overrides: tuple[str, ...],
    wide: bool,
    traced: bool,
    checkpoints: bool,
    switch: float,
) -> None:
    """Compare a run in threads with its replay, and the checkpoints that it writes with those that are due."""
    config = tiny(*overrides, *(SEVERAL_CHUNKS if wide else ()), "steps=4")
    training = build(config, tmp_path_factory.mktemp("checkpoints") if checkpoints else None, evaluate=True)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(switch)
    try:
        events = run_threads(training, Trace() if traced else None)
    finally:
        sys.setswitchinterval(usual)
    found = result(training, events)
    assert_same(without_files(found), replayed(config))
    assert training.banks.statistics().staleness == staleness(4, config.delay)
    interval = config.checkpoint.interval
    due = {step for step in range(1, 5) if step == 4 or (interval and step % interval == 0)}
    assert set(found.saved) == (due if checkpoints else set())


def staleness(steps: int, delay: int) -> dict[int, int]:
    """Return the expected count of each staleness: the first τ batches have less than τ."""
    seen: dict[int, int] = {}
    for batch in range(steps):
        seen[min(batch, delay)] = seen.get(min(batch, delay), 0) + 1
    return seen


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_the_delay_changes_the_trajectory(delay: int) -> None:
    """Trajectories of different delays differ from update 2 on."""
    losses = [loss for _, loss, _, _ in replayed(tiny(f"delay={delay}", "steps=5", "evaluation.interval=2")).updates]
    ordinary = [loss for _, loss, _, _ in replayed(tiny("delay=0", "steps=5", "evaluation.interval=2")).updates]
    assert losses[0] == ordinary[0]
    assert (losses[1:] == ordinary[1:]) is (delay == 0)


def test_two_replays_are_equal() -> None:
    first, second = (build(tiny("delay=2")) for _ in range(2))
    assert_same(result(first, run_sequence(first)), result(second, run_sequence(second)))
