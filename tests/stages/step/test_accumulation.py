"""Gradient accumulation: k steps of b sequences equal one step of k·b, and micro-batches affect rounding only."""

from functools import cache

import pytest

from tests.stages.support import assert_same, build, result, run_threads, tiny
from tests.stages.training.twin import SMALL_STEPS, Expectation, assert_expected, expectation
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.data.batches import RandomTokens, TokenIds
from threadloom.stages.memory.graph_items import Event
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)


class RecordingSource:
    """A source that records the sequences that it yields, by batch."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._source: RandomTokens = RandomTokens(config.model.geometry(), config.batch_sizes, config.seed)
        self._length = config.model.context
        self.drawn: dict[tuple[int, int], list[bytes]] = {}

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        self._source.fill(batch, micro, ids, targets)
        pairs = zip(ids.reshape(-1, self._length), targets.reshape(-1, self._length), strict=True)
        self.drawn[batch, micro] = [row.tobytes() + target.tobytes() for row, target in pairs]

    def counted(self, batch: int) -> int:
        return self._source.counted(batch)

    def batches(self) -> list[list[bytes]]:
        """Return the sequences of each batch, in the order of their micro-batches."""
        count = max(batch for batch, _ in self.drawn) + 1
        return [
            [row for place, rows in sorted(self.drawn.items()) if place[0] == batch for row in rows]
            for batch in range(count)
        ]


def trained(*overrides: str) -> tuple[Training, list[Event], RecordingSource]:
    config = tiny("steps=4", *SMALL_STEPS, *overrides)
    source = RecordingSource(config)
    training = build(config, data=source)
    return training, run_threads(training), source


@cache
def one_large_batch(delay: int) -> tuple[Expectation, list[list[bytes]]]:
    """Return the results of the reference's training on batches of 12 sequences, and these sequences."""
    training, _, source = trained("batch_size=12", "micro_batch=12", "lanes=1", f"delay={delay}")
    return expectation(build(training.config)), source.batches()


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize(("steps", "batch"), [(2, 6), (3, 4), (6, 2), (12, 1)])
def test_accumulation_equals_one_large_batch(steps: int, batch: int, delay: int) -> None:
    micro = f"micro_batch={min(batch, 2)}"
    found, events, source = trained(
        f"gradient_accumulation_steps={steps}", f"batch_size={batch}", micro, f"delay={delay}"
    )
    expected, batches = one_large_batch(delay)
    assert source.batches() == batches, "exactly the same sequences are drawn"
    assert len(batches[0]) == 12
    assert_expected(found, events, expected)


def test_with_the_same_micro_batches_accumulation_has_the_same_bits() -> None:
    accumulated, events, _ = trained("gradient_accumulation_steps=4", "batch_size=3", "micro_batch=1", "lanes=3")
    whole, other, _ = trained("gradient_accumulation_steps=1", "batch_size=12", "micro_batch=1", "lanes=3")
    assert_same(result(accumulated, events), result(whole, other))


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("lanes", [1, 2])
def test_micro_batch_size_and_lanes_affect_rounding_only(micro: int, lanes: int) -> None:
    found, events, source = trained("batch_size=12", f"micro_batch={micro}", f"lanes={lanes}")
    expected, batches = one_large_batch(0)
    assert source.batches() == batches
    assert_expected(found, events, expected)


def test_two_batches_are_not_the_same_sequences() -> None:
    """The comparison of sequences above can fail."""
    _, _, source = trained()
    assert len({row for batch in source.batches() for row in batch}) == 4 * 4
