"""Declared staleness, enforced during training: a batch that read another version is not applied."""

import numpy as np
import pytest

from tests.stages.support import build, intercept, run_sequence, run_threads, tiny
from threadloom.pipeline import StageFailure, StaleVersion
from threadloom.stages.memory.graph_items import MicroBatch
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

STEPS = 6


class WrongEmbed:
    """An Embed that leases a version `off` updates from the declared one, for one micro-batch of one batch."""

    def __init__(self, training: Training, off: int) -> None:
        self._embed = training.embed
        self._banks = training.banks
        self._off = off

    def __call__(self, item: MicroBatch) -> MicroBatch:
        return self._embed(item)

    def acquire(self, item: MicroBatch) -> None:
        """Lease as declared, except for micro-batch 2 of batch 4."""
        if (item.batch, item.micro) == (4, 2):
            item.version = item.batch - self._banks.delay + self._off
            item.lease = self._banks.lease(item.version)
        else:
            self._embed.acquire(item)


@pytest.mark.parametrize(("delay", "off"), [(1, 1), (2, 1), (2, 2), (3, 3), (1, -1), (2, -1)])
def test_a_batch_computed_with_another_version_is_refused(delay: int, off: int) -> None:
    training = build(tiny(f"delay={delay}", f"steps={STEPS}", "extra_banks=2"))
    setattr(training, "embed", WrongEmbed(training, off))  # noqa: B010 - a stage that is no Embed
    version = 4 - delay + off
    pinned: list[object] = []
    publish = training.publish.acquire

    def acquire(shards: list[object]) -> None:
        publish(shards)  # type: ignore[arg-type]
        if off < 0 and not pinned and training.banks.statistics().newest >= version:
            pinned.append(training.banks.lease(version))  # keeps the version that is too old

    training.publish.acquire = acquire  # type: ignore[method-assign, assignment]
    with pytest.raises(StageFailure, match="the update was not applied") as caught:
        run_threads(training)
    failure = caught.value
    assert failure.stage == "collect"
    assert failure.label == {"batch": 4}
    assert isinstance(failure.__cause__, StaleVersion)
    for part in ("batch 4", f"version {version} ", f"expected version {4 - delay} for delay {delay}"):
        assert part in str(failure.__cause__)
    statistics = training.banks.statistics()
    assert statistics.newest == 4, "batches 0 to 3 produced versions 1 to 4, batch 4 none"
    assert statistics.staleness[delay - off] >= 1

    expected = build(tiny(f"delay={delay}", "steps=4", "extra_banks=2", "schedule.decay_steps=6"))
    run_sequence(expected)
    for name, arena in expected.optimizer.state.items():
        np.testing.assert_array_equal(training.optimizer.state[name].flat, arena.flat, err_msg=name)


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_the_histogram_counts_observed_staleness(delay: int) -> None:
    training = build(tiny(f"delay={delay}", "steps=9"))
    run_threads(training)
    expected = dict.fromkeys(range(delay), 1) | {delay: 9 - delay}
    assert training.banks.statistics().staleness == expected


def test_synchronous_batches_are_counted_without_staleness() -> None:
    training = build(tiny("delay=2", "steps=9", "schedule.synchronous=4"))
    run_threads(training)
    assert training.banks.statistics().staleness == {0: 4, 1: 1, 2: 4}


def test_forward_and_backward_of_a_micro_batch_read_the_same_bank() -> None:
    """Embed leases the bank; forward and backward read the same one."""
    training = build(tiny("delay=2", f"steps={STEPS}", "threads.forward=2", "threads.backward=2"))
    banks: dict[str, dict[tuple[int, int], int]] = {"embed": {}, "forward": {}, "backward": {}}
    for stage, seen in banks.items():

        def before(item: MicroBatch, seen: dict[tuple[int, int], int] = seen) -> None:
            seen[item.batch, item.micro] = id(item.held()[1].bank)

        intercept(training, stage, before)
    run_threads(training)
    assert len(banks["embed"]) == 4 * STEPS
    assert banks["embed"] == banks["forward"] == banks["backward"]
