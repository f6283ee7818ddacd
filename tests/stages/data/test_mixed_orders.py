"""Several sources by epochs, in windows and packed: each has its share, and no sequence twice within its epoch."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from threadloom.stages.config import BatchSizes, Shuffle
from threadloom.stages.data.batches import Sequences, TokenBatches
from threadloom.stages.data.mixture import TURNS, Mixture, Range, SourceTurns
from threadloom.stages.data.packed_sequences import PackedSequences
from threadloom.stages.data.packing import PackedDocuments
from threadloom.stages.data.token_file import DataError, TokenFile

weights_of_sources = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5)
STARTS = (0, 120, 157)
"""The first tokens of three sources of 120, 37 and 143 tokens, in documents of 1 to 15."""
TOKENS, DOCUMENTS = 300, np.unique([0, 9, 24, 31, *range(40, 300, 13), *range(120, 130), *STARTS]).astype(np.int64)


def tokens(context: int = 9) -> TokenFile:
    return TokenFile(np.arange(TOKENS, dtype=np.uint32), TOKENS, context, Path("memory"), documents=DOCUMENTS)


def mixture(weights: tuple[float, ...] = (3, 0.5, 1)) -> Mixture:
    found = Mixture.of(weights, STARTS, TOKENS)
    assert found is not None
    return found


def packed(bordered: bool) -> PackedSequences:
    return PackedSequences(tokens(), bordered=bordered, sources=STARTS)


@settings(deadline=None, max_examples=40)
@given(weights_of_sources, st.integers(0, 2**63 - 1))
def test_sequences_of_each_source_are_numbered_in_the_order_of_the_run(weights: list[float], seed: int) -> None:
    """The oracle counts; a place asked for by itself is that of a run from the start."""
    turns, counts = SourceTurns(weights, seed), [0] * len(weights)
    exact = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    for number in range(3 * TURNS):
        source, own = turns.place(number)
        assert own == counts[source]
        counts[source] += 1
        if (number + 1) % TURNS == 0:
            for count, share in zip(counts, exact, strict=True):
                assert abs(count - share * (number + 1)) < len(weights)
    for number in (5 * TURNS + 1, 0, 3 * TURNS - 1):
        assert SourceTurns(weights, seed).place(number) == turns.place(number)


def test_shares_of_the_largest_and_smallest_weights_are_finite() -> None:
    assert mixture((1e308, 1e308, 1e308)).shares == (1 / 3, 1 / 3, 1 / 3)
    assert mixture((1e308, 5e-324, 1e308)).shares == (0.5, 0.0, 0.5)


def test_sources_are_in_random_order_within_a_block() -> None:
    runs = [SourceTurns([1, 1], seed) for seed in range(200)]
    found = np.array([[turns.place(number).source for number in range(64)] for turns in runs])
    ones = found.sum(axis=0)
    assert (abs(ones - 100) < 5 * 50**0.5).all(), "each place has each source about as often"
    assert len({tuple(row) for row in found.tolist()}) == 200


@pytest.mark.parametrize("kind", ["windows", "packed", "bordered"])
def test_no_sequence_is_repeated_within_an_epoch_of_its_source(kind: str) -> None:
    sequences: Sequences = tokens() if kind == "windows" else packed(kind == "bordered")
    mixed, sizes = mixture(), BatchSizes(6, 2)
    source = TokenBatches(sequences, sizes, 7, shuffle=Shuffle.EPOCHS, mixture=mixed)
    taken: defaultdict[int, list[int]] = defaultdict(list)
    for batch in range(200):
        for sequence in range(6):
            start = source.start(batch, sequence)
            ids, targets = np.zeros(9, np.int32), np.zeros(9, np.int32)
            sequences.read(start, ids, targets)
            counted = targets[targets >= 0]
            (number,) = {int(np.searchsorted(STARTS, each, side="right")) - 1 for each in counted.tolist()}
            assert {int(np.searchsorted(STARTS, each, side="right")) - 1 for each in ids[: len(counted)].tolist()} == {
                number
            }, "a sequence never crosses from one source into the next"
            taken[number].append(start)
    assert len(taken) == 3
    for number, starts in taken.items():
        first, end = sequences.starts_within(mixed.ranges[number])
        count = end - first if kind != "windows" else max(1, (end - first) // 9)
        epochs = [starts[at : at + count] for at in range(0, len(starts) - count + 1, count)]
        assert len(epochs) > 1
        for epoch in epochs:
            assert len(set(epoch)) == count and first <= min(epoch) <= max(epoch) < end
            if kind == "windows":
                assert (np.diff(sorted(epoch)) == 9).all(), "windows of an epoch do not overlap"
        assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has another order"


def test_sequences_do_not_depend_on_the_sizes_of_batches() -> None:
    def starts(sequences: int) -> list[int]:
        source = TokenBatches(tokens(), BatchSizes(sequences, 1), 3, shuffle=Shuffle.EPOCHS, mixture=mixture())
        return [source.start(batch, number) for batch in range(240 // sequences) for number in range(sequences)]

    assert starts(1) == starts(2) == starts(12) == starts(80)


@pytest.mark.parametrize("bordered", [False, True])
def test_sources_are_packed_by_themselves(bordered: bool) -> None:
    found = PackedDocuments(DOCUMENTS, TOKENS, 9, bordered=bordered, sources=STARTS)
    expected = list[list[tuple[int, int]]]()
    numbers = [0]
    for first, end in zip(STARTS, (*STARTS[1:], TOKENS), strict=True):
        own = DOCUMENTS[(first <= DOCUMENTS) & (end > DOCUMENTS)] - first
        alone = PackedDocuments(own, end - first, 9, bordered=bordered)
        expected += [[(first + s, n) for s, n in zip(*alone.pieces(at), strict=True)] for at in range(len(alone))]
        numbers.append(len(expected))
    assert [list(zip(*found.pieces(at), strict=True)) for at in range(len(found))] == expected
    assert list(found.sources) == [Range(*pair) for pair in pairwise(numbers)]


def test_packed_sequences_are_drawn_by_weight() -> None:
    sequences, mixed = packed(bordered=True), mixture((1, 1, 2))
    source = TokenBatches(sequences, BatchSizes(100, 1), 7, mixture=mixed)
    starts = np.array([source.start(batch, number) for batch in range(40) for number in range(100)])
    for number, share in enumerate((0.25, 0.25, 0.5)):
        first, end = sequences.starts_within(mixed.ranges[number])
        counts = np.bincount(starts[(first <= starts) & (starts < end)] - first, minlength=end - first)
        assert abs(counts.sum() - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
        assert counts.min() > 0


def test_a_source_without_a_sequence_is_refused() -> None:
    single = np.unique([*DOCUMENTS, *range(120, 157)]).astype(np.int64)
    of_single = TokenFile(np.arange(TOKENS, dtype=np.uint32), TOKENS, 9, Path("memory"), documents=single)
    for sequences in (tokens(37), PackedSequences(of_single, bordered=True, sources=STARTS)):
        for shuffle in Shuffle:
            with pytest.raises(DataError, match=r"data\.text, entry 2.*got none in 37 training tokens"):
                TokenBatches(sequences, BatchSizes(4, 1), 7, shuffle=shuffle, mixture=mixture())
