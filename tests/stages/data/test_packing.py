"""Packing of documents: every token once, whole documents where they fit, and the bins of a slow best fit."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from threadloom.stages.config import BatchSizes, Borders, ConfigError, DataConfig, Packing, Shuffle
from threadloom.stages.data.batches import EvaluationWindows, Sequences, TokenBatches
from threadloom.stages.data.bordered_tokens import BorderedTokenFile
from threadloom.stages.data.choice import EvaluationChoice
from threadloom.stages.data.packed_sequences import PackedSequences
from threadloom.stages.data.packing import PackedDocuments, best_fit
from threadloom.stages.data.token_file import IGNORED_TARGET, DataError, TokenFile

lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=40).filter(lambda each: max(each) > 1)


def starts_of(lengths: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths[:-1]]).astype(np.int64)


def corpus(lengths: list[int], context: int, counted: NDArray[np.uint8] | None = None) -> TokenFile:
    """Return a file of documents whose tokens are their positions, with at least one window."""
    spare = max(0, context + 1 - sum(lengths))
    lengths = [*lengths[:-1], lengths[-1] + spare]
    ids = np.arange(sum(lengths), dtype=np.uint32)
    if counted is not None:
        counted = np.resize(counted, len(ids))
    return TokenFile(ids, len(ids), context, Path("memory"), documents=starts_of(lengths), counted=counted)


def slow_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Return the room that is left in each bin."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - size)
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@settings(deadline=None)
@given(st.integers(1, 70).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=150))))
def test_bins_are_those_of_best_fit(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    bins = best_fit(np.array(sizes, np.int64), capacity)
    assert set(bins) == set(range(len(set(bins))))
    rooms = capacity - np.bincount(bins, weights=np.array(sizes, float))
    assert sorted(rooms.astype(int).tolist()) == slow_best_fit(sizes, capacity)


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 12), st.booleans())
def test_pieces_cover_each_document(lengths: list[int], context: int, bordered: bool) -> None:
    documents = starts_of(lengths)
    packed = PackedDocuments(documents, sum(lengths), context, bordered=bordered)
    found: dict[int, list[tuple[int, int]]] = {}
    for sequence in range(len(packed)):
        pieces = packed.pieces(sequence)
        rows = sum(n - 1 for n in pieces.lengths.tolist()) if bordered else int(pieces.lengths.sum()) - 1
        assert 1 <= rows <= context
        for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True):
            document = int(np.searchsorted(documents, start, side="right")) - 1
            found.setdefault(document, []).append((start, start + length))
    for document, length in enumerate(lengths):
        begin = int(documents[document])
        if length == 1:
            assert len(found.get(document, [])) <= (not bordered)
            continue
        spans = sorted(found[document])
        assert len(spans) == -(-(length - 1) // context)  # whole if it fits
        assert spans[0][0] == begin and spans[-1][1] == begin + length
        assert all(after[0] == before[1] - 1 for before, after in pairwise(spans))
    assert 0 <= packed.padding < 1


def rows_of(source: Sequences, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    context = source.context
    ids, targets, starts = (np.full(context, -7, np.int32) for _ in range(3))
    source.read(number, ids, targets)
    source.write_starts(number, starts)
    return ids, targets, starts


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 12), st.integers(0, 2**31))
def test_sequences_within_borders(lengths: list[int], context: int, seed: int) -> None:
    """Each token but the first of a document is a target once, of the token before it, unless it does not count."""
    counted = np.random.default_rng(seed).integers(0, 2, 30).astype(np.uint8)
    tokens = corpus(lengths, context, counted)
    assert tokens.counted is not None and tokens.documents is not None
    source = PackedSequences(tokens, bordered=True)
    seen, total = [], 0
    for number in range(source.starts):
        ids, targets, starts = rows_of(source, number)
        inside = targets != IGNORED_TARGET
        assert (targets[inside] == ids[inside] + 1).all()
        seen += targets[inside].tolist()
        total += source.targets_counted([number])
        for row in range(context):
            assert starts[row] <= row and starts[starts[row]] == starts[row]
            if inside[row]:  # documents are runs of successive tokens
                assert ids[row] - ids[starts[row]] == row - starts[row]
    expected = sorted(set(np.flatnonzero(tokens.counted).tolist()) - set(tokens.documents.tolist()))
    assert sorted(seen) == expected
    assert total == len(expected)


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 12), st.integers(0, 2**31))
def test_sequences_without_borders(lengths: list[int], context: int, seed: int) -> None:
    """The target of a token is the next one of the sequence; only padding and tokens that do not count are ignored."""
    counted = np.random.default_rng(seed).integers(0, 2, 30).astype(np.uint8)
    tokens = corpus(lengths, context, counted)
    assert tokens.counted is not None
    source = PackedSequences(tokens, bordered=False)
    for number in range(source.starts):
        ids, targets, _ = rows_of(source, number)
        pieces = source.packed.pieces(number)
        window = np.concatenate([np.arange(s, s + n) for s, n in zip(*pieces, strict=True)])
        rows = len(window) - 1
        assert ids.tolist() == [*window[:-1], *[0] * (context - rows)]
        wanted = np.where(tokens.counted[window] == 1, window, IGNORED_TARGET)[1:]
        assert targets.tolist() == [*wanted, *[IGNORED_TARGET] * (context - rows)]
        assert source.targets_counted([number]) == np.count_nonzero(targets != IGNORED_TARGET)


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 12), st.booleans())
def test_windows_within_borders(lengths: list[int], context: int, marked: bool) -> None:
    counted = np.array([1, 0, 1], np.uint8) if marked else None
    plain = corpus(lengths, context, counted)
    assert plain.documents is not None
    tokens, firsts = BorderedTokenFile(plain), plain.documents.tolist()
    for start in range(tokens.starts):
        ids, targets, starts = rows_of(tokens, start)
        expected = [
            IGNORED_TARGET if t in firsts or (plain.counted is not None and not plain.counted[t]) else t
            for t in range(start + 1, start + context + 1)
        ]
        assert ids.tolist() == list(range(start, start + context))
        assert targets.tolist() == expected
        begun = [max([0, *(first - start for first in firsts if first <= token)]) for token in ids.tolist()]
        assert starts.tolist() == begun
        assert tokens.targets_counted([start]) == sum(t != IGNORED_TARGET for t in expected)


def test_an_epoch_has_every_packed_sequence_once() -> None:
    source = PackedSequences(corpus([3, 9, 14, 2, 2, 6, 31, 1, 8], 9), bordered=True)
    batches = TokenBatches(source, BatchSizes(2, 1), 5, shuffle=Shuffle.EPOCHS)
    drawn = [batches.start(batch, sequence) for batch in range(source.starts) for sequence in range(2)]
    assert sorted(drawn[: source.starts]) == sorted(drawn[source.starts :]) == list(range(source.starts))
    ids, targets, starts = (np.zeros(9, np.int32) for _ in range(3))
    batches.fill(1, 1, ids, targets)
    batches.fill_starts(1, 1, starts)
    for found, expected in zip((ids, targets, starts), rows_of(source, drawn[3]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert batches.counted(1) == source.targets_counted(drawn[2:4])


@pytest.mark.parametrize("borders", Borders)
def test_evaluations_have_all_sequences_or_evenly_spaced_ones(borders: Borders) -> None:
    tokens = corpus([5] * 32, 9)
    choose = EvaluationChoice(DataConfig(packing=Packing.DOCUMENTS, borders=borders), tokens, 4, 2)
    whole, part = choose(99), choose(1)
    assert isinstance(whole, EvaluationWindows)
    assert whole.starts.tolist() == list(range(len(whole.starts)))
    assert len(part.starts) == 4 and len(set(part.starts.tolist())) == 4
    assert whole.counted(0) == whole.tokens
    many = EvaluationChoice(DataConfig(packing=Packing.DOCUMENTS, borders=borders), tokens, 64, 64)(1)
    assert len(many.starts) == 64 and set(many.starts.tolist()) == set(whole.starts.tolist())


def test_a_text_without_documents_is_refused() -> None:
    tokens = TokenFile(np.zeros(20, np.uint16), 5, 4, Path("memory"))
    with pytest.raises(ConfigError, match=r"data\.packing.*documents.*one running text"):
        PackedSequences(tokens, bordered=False)
    with pytest.raises(ConfigError, match=r"data\.borders.*documents.*one running text"):
        BorderedTokenFile(tokens)
    single = TokenFile(np.zeros(20, np.uint16), 5, 4, Path("memory"), documents=np.arange(20))
    with pytest.raises(DataError, match="at least two tokens"):
        PackedSequences(single, bordered=True)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    ids = np.array([1, 2, 3, 9, 1, 2, 3, 1], np.uint16)
    source = PackedSequences(TokenFile(ids, 5, 4, Path("memory"), documents=np.array([0, 4])), bordered=True)
    with pytest.raises(DataError, match="id 9 at position 3"):
        for number in range(source.starts):
            rows_of(source, number)
