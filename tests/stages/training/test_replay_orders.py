"""Rare orders of events, forced: batches can overlap, and no order changes a bit."""

import itertools
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.stages.support import (
    SEVERAL_CHUNKS,
    WAIT,
    assert_same,
    build,
    intercept,
    result,
    run_sequence,
    run_threads,
    tiny,
    wait_for,
)
from threadloom.pipeline import version_for
from threadloom.stages.memory.graph_items import MicroBatch, MicroGradient, ReduceShard, Update, UpdateShard
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(90)

STEPS = 6


def assert_equals_replay(training: Training, folder: Path | None = None) -> None:
    """Run a training with intercepted stages, and compare it with the replay."""
    found = result(training, run_threads(training))
    expected = build(training.config, folder, evaluate=training.evaluate is not None)
    assert_same(found, result(expected, run_sequence(expected)))


def force_overlap(training: Training, stages: dict[str, int], batches: Sequence[int]) -> list[int]:
    """For every k of `batches`, block the first call of each stage on batch k - back until all of them have begun.

    `stages` maps stage to back. Returns a list to which each k is added once its calls have overlapped.
    """
    overlapped: list[int] = []
    barriers = {batch: threading.Barrier(len(stages), partial(overlapped.append, batch)) for batch in batches}
    for stage, back in stages.items():

        def before(item: Any, back: int = back) -> None:
            first = getattr(item, "micro", None) == 0 or getattr(item, "shard", None) == 0
            if first and item.batch + back in barriers:
                barriers[item.batch + back].wait(WAIT)

        intercept(training, stage, before)
    return overlapped


@pytest.mark.parametrize("threads", [1, 2])
def test_at_delay_2_forward_backward_and_update_of_three_batches_overlap(threads: int) -> None:
    """F(N), B(N-1) and O(N-2) run at the same time, in every step of the steady state."""
    both = (f"threads.forward={threads}", f"threads.backward={threads}")
    room = ("slots=9", "channel_capacity=8")  # for two whole batches
    training = build(tiny("delay=2", f"steps={STEPS}", *room, *both))
    overlapped = force_overlap(training, {"forward": 0, "backward": 1, "update": 2}, range(2, STEPS))
    assert_equals_replay(training)
    assert overlapped == list(range(2, STEPS))


@pytest.mark.parametrize(
    "stages", [{"forward": 0, "backward": 1}, {"forward": 0, "update": 1}, {"embed": 0, "clip": 1}]
)
def test_at_delay_1_a_batch_overlaps_with_the_previous(stages: dict[str, int]) -> None:
    training = build(tiny("delay=1", f"steps={STEPS}", "batch_size=2", "lanes=1"))
    if "clip" in stages:  # its argument is the list of a batch's shards
        gate = {batch: threading.Event() for batch in range(STEPS)}
        intercept(training, "embed", lambda item: gate[item.batch].set())
        intercept(
            training,
            "clip",
            lambda shards: wait_for(gate[min(shards[0].batch + 1, STEPS - 1)], "embed of the next batch"),
        )
        assert_equals_replay(training)
        return
    overlapped = force_overlap(training, stages, range(1, STEPS))
    assert_equals_replay(training)
    assert overlapped == list(range(1, STEPS))


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_every_batch_reads_the_declared_version_after_it_is_published(delay: int) -> None:
    """When the forward pass of a batch begins, its version is published and is the declared one."""
    training = build(tiny(f"delay={delay}", f"steps={STEPS}", "threads.forward=3"))
    seen: list[tuple[int, int, int]] = []

    def before(item: MicroBatch) -> None:
        _, lease = item.held()
        seen.append((item.batch, lease.version, training.banks.statistics().newest))

    intercept(training, "forward", before)
    assert_equals_replay(training)
    assert len(seen) == STEPS * training.plan.micro_batches
    for batch, version, newest in seen:
        assert version == version_for(batch, delay)
        assert version <= newest <= batch


def test_a_lane_blocked_in_forward_is_not_overtaken_by_another() -> None:
    """Lane 0's first micro-batch is blocked until lane 1's of the next batch has passed forward."""
    training = build(
        tiny("delay=1", "batch_size=2", "lanes=2", "threads.forward=3", "threads.backward=3", "channel_capacity=1",
             "slots=6", f"steps={STEPS}")
    )  # fmt: skip
    ahead = {batch: threading.Event() for batch in range(STEPS + 1)}
    ahead[STEPS].set()

    def before(item: MicroBatch) -> None:
        if item.micro == 0 and item.batch % 2 == 0:
            wait_for(ahead[item.batch + 1], f"forward of lane 1's micro-batch of batch {item.batch + 1}")

    def after(item: MicroBatch, _: MicroBatch) -> None:
        if item.micro == 1:
            ahead[item.batch].set()

    intercept(training, "forward", before, after)
    assert_equals_replay(training)


def test_a_lane_blocked_in_backward_keeps_its_order() -> None:
    """Lane 0 is blocked in backward until all other micro-batches of this batch and the next wait."""
    config = tiny("delay=1", "lanes=2", "threads.backward=3", "slots=9", "channel_capacity=8", f"steps={STEPS}")
    training = build(config)
    last = training.plan.micro_batches - 1
    waiting = {batch: threading.Event() for batch in range(STEPS + 1)}
    waiting[STEPS].set()
    order: dict[int, list[tuple[int, int]]] = {0: [], 1: []}

    def before(item: MicroBatch) -> None:
        if item.micro == 0:
            wait_for(waiting[item.batch + 1], f"all of batch {item.batch + 1} through forward")
        order[training.plan.lane_of(item.micro)].append((item.batch, item.micro))

    intercept(training, "backward", before)
    intercept(training, "forward", after=lambda item, _: waiting[item.batch].set() if item.micro == last else None)
    assert_equals_replay(training)
    assert all(places == sorted(places) and len(places) == 2 * STEPS for places in order.values())


@pytest.mark.parametrize("stage", ["reduce", "update"])
@pytest.mark.parametrize("delay", [0, 2])
def test_shards_may_be_done_in_any_order(stage: str, delay: int) -> None:
    """The first shard is blocked until all others are done."""
    training = build(tiny(*SEVERAL_CHUNKS, f"delay={delay}", "threads.reduce=3", "threads.update=3", "steps=3"))
    shards = training.shards.shards
    assert shards == 3
    done = {batch: threading.Semaphore(0) for batch in range(3)}
    order: list[tuple[int, int]] = []

    def before(item: ReduceShard | UpdateShard) -> None:
        if item.shard == 0:
            for _ in range(shards - 1):
                assert done[item.batch].acquire(timeout=WAIT)

    def after(item: ReduceShard | UpdateShard, _: object) -> None:
        order.append((item.batch, item.shard))
        if item.shard:
            done[item.batch].release()

    intercept(training, stage, before, after)
    assert_equals_replay(training)
    assert [shard for _, shard in order][shards - 1 :: shards] == [0, 0, 0]


@pytest.mark.parametrize("interval", [4, 5, 6])
@pytest.mark.parametrize("stage", ["evaluate", "save"])
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_version_does_not_change_while_it_is_evaluated_or_saved(
    delay: int, stage: str, interval: int, tmp_path: Path
) -> None:
    """The first evaluation or checkpoint is blocked until three more updates have written to other banks.

    The order of the banks depends on the interval, so an unprotected bank would be overwritten in some case.
    """
    often = (f"evaluation.interval={interval}", f"checkpoint.interval={interval}", "checkpoint.keep=0")
    config = tiny(f"delay={delay}", f"steps={2 * interval}", "extra_banks=1", "checkpoint.copies=true", *often)
    later = threading.Event()
    # Only one of the two, since the lease of the other would protect the version as well.
    saves = stage == "save"
    training = build(config, tmp_path / "threads" if saves else None, evaluate=not saves)

    def before(update: Update) -> None:
        if update.step == interval:
            wait_for(later, "three more updates while a version is read")

    intercept(training, "publish", after=lambda _, made: later.set() if made.step == interval + 3 else None)
    intercept(training, stage, before)
    assert_equals_replay(training, tmp_path / "replay" if saves else None)
    for step in (interval, 2 * interval) if saves else ():
        names = {path.name for path in (tmp_path / "replay" / f"step-{step:06d}").iterdir()}
        for name in names - {"training.json"}:
            found, expected = (tmp_path / who / f"step-{step:06d}" / name for who in ("threads", "replay"))
            assert found.read_bytes() == expected.read_bytes(), name


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_without_copies_no_update_begins_before_the_checkpoint_is_written(delay: int, tmp_path: Path) -> None:
    """The next update would change the moments while they are written."""
    config = tiny(f"delay={delay}", "steps=6", "checkpoint.interval=2", "checkpoint.keep=0", "checkpoint.copies=false")
    training = build(config, tmp_path / "threads")
    order: list[tuple[str, int]] = []
    reduced = threading.Event()

    def before_save(update: Update) -> None:
        if update.step < config.steps:
            wait_for(reduced, "the next batch reduced while a checkpoint is written")
            reduced.clear()

    def after_reduce(shard: ReduceShard, _: object) -> None:
        if shard.batch % 2 == 0 and shard.batch:
            reduced.set()

    intercept(training, "save", before_save, after=lambda _, made: order.append(("saved", made.step)))
    intercept(training, "reduce", after=after_reduce)
    intercept(training, "update", lambda shard: order.append(("updates", shard.batch + 1)))
    assert_equals_replay(training, tmp_path / "replay")
    for step in (2, 4):
        assert order.index(("saved", step)) < order.index(("updates", step + 1))
        for path in (tmp_path / "replay" / f"step-{step:06d}").glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / "threads" / path.parent.name / path.name).read_bytes(), path.name


def test_the_loss_of_a_batch_does_not_depend_on_the_arrival_order_of_its_micro_batches() -> None:
    training = build(tiny("delay=1"))
    parts = [MicroGradient(0, micro, 0, loss, 44) for micro, loss in enumerate((1e16, 1.0, -1e16, 3.0))]
    losses = {next(iter(training.collect(order))).loss.mean for order in itertools.permutations(parts)}
    assert losses == {4.0 / 44}
