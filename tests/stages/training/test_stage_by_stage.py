"""Execution stage by stage: the bits of the sequential replay, in waves that their resources allow."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.stages.support import assert_same, build, result, run_sequence, tiny
from threadloom.stages.memory.graph_items import MicroBatch, MicroGradient
from threadloom.stages.training import sequential as bench_sequential
from threadloom.stages.training.sequential import stage_by_stage


@pytest.mark.parametrize("overrides", [(), ("delay=2",), ("lanes=3", "slots=2"), ("gradient_accumulation_steps=2",)])
def test_stage_by_stage_is_the_replay_bit_for_bit(overrides: tuple[str, ...]) -> None:
    one, other = build(tiny(*overrides)), build(tiny(*overrides))
    events = list(stage_by_stage(one, 2))
    assert_same(result(one, events), result(other, run_sequence(other)))


@pytest.mark.parametrize(
    ("overrides", "cores", "most"),
    [
        (("shared_lanes=true", "threads.backward=1", "slots=4"), 3, 1),
        (("shared_lanes=true", "threads.backward=2", "slots=4"), 3, 2),
        (("shared_lanes=true", "threads.backward=3", "slots=4"), 2, 2),
        (("shared_lanes=true", "threads.backward=3", "slots=2"), 3, 2),
        (("lanes=2", "slots=4"), 3, 2),
    ],
)
def test_no_wave_is_wider_than_its_resources(overrides: tuple[str, ...], cores: int, most: int) -> None:
    """A wider wave would deadlock: one micro-batch waits for its predecessor, which waits for a slot that it holds."""
    training = build(tiny(*overrides, "steps=2"))
    begun, waves = training.backward, [0]

    class Counted:
        def acquire(self, item: MicroBatch) -> None:
            begun.acquire(item)
            waves[-1] += 1

        def __call__(self, item: MicroBatch) -> MicroGradient:
            if waves[-1]:
                waves.append(0)
            return begun(item)

    training.backward = Counted()  # type: ignore[assignment]
    # A single thread takes micro-batches in order, so that a wave that is too wide is counted and does not deadlock.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_sequential, "ThreadPoolExecutor", lambda cores, **named: ThreadPoolExecutor(1, **named))
        list(stage_by_stage(training, cores))
    assert max(waves) == most
