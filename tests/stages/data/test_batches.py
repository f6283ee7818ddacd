"""Batch sources: drawn windows, random tokens and evaluation windows."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from threadloom.stages.config import BatchSizes
from threadloom.stages.data.batches import (
    BatchSource,
    EvaluationWindows,
    RandomTokens,
    TokenBatches,
    evaluation_batches,
)
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.models import Geometry


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return the output of Philox4x64-10 of Salmon et al. 2011, computed in Python integers."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_the_reference_philox_reproduces_the_published_vectors() -> None:
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([0] * 4, [0] * 2) == expected


def token_file(count: int, context: int) -> TokenFile:
    return TokenFile(np.arange(count, dtype=np.uint32), count, context, Path("memory"))


def filled(source: BatchSource, batch: int, micro: int, rows: int) -> tuple[list[int], list[int]]:
    ids, targets = np.full(rows, -1, np.int32), np.full(rows, -1, np.int32)
    source.fill(batch, micro, ids, targets)
    return ids.tolist(), targets.tolist()


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 11), st.integers(0, 500))
def test_starts_are_drawn_by_philox_from_seed_batch_and_sequence(
    seed: int, batch: int, sequence: int, extra: int
) -> None:
    batches = TokenBatches(token_file(8 + extra, 7), BatchSizes(12, 1), seed)
    draw = philox([1, sequence, batch, 0], [seed, int.from_bytes(b"starts", "big")])[0]
    start = draw * (1 + extra) // 2**64
    assert batches.start(batch, sequence) == start
    ids, targets = filled(batches, batch, sequence, 7)
    assert ids == list(range(start, start + 7))
    assert targets == list(range(start + 1, start + 8))


def test_drawn_starts_are_pinned() -> None:
    batches = TokenBatches(token_file(1_000_064, 64), BatchSizes(4, 2), 1337)
    assert [batches.start(batch, sequence) for batch in (0, 1) for sequence in range(4)] == [
        74809,
        177205,
        34910,
        318596,
        746045,
        274861,
        667104,
        919730,
    ]


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.permutations(range(12)), st.integers(0, 9), st.booleans())
def test_sequences_do_not_depend_on_micro_batches_or_order(
    size: int, order: list[int], batch: int, random: bool
) -> None:
    def source(sequences: int, micro_batch: int) -> BatchSource:
        if random:
            return RandomTokens(Geometry(50, 5, 1, 1, 1), BatchSizes(sequences, micro_batch), 3)
        return TokenBatches(token_file(99, 5), BatchSizes(sequences, micro_batch), 3)

    whole = filled(source(12, 12), batch, 0, 60)
    cut = source(12, size)
    for micro in [m for m in order if m < 12 // size] * 2:
        span = slice(micro * size * 5, (micro + 1) * size * 5)
        assert filled(cut, batch, micro, size * 5) == (whole[0][span], whole[1][span])
    assert filled(source(24, 12), batch, 0, 60) == whole  # more accumulation appends sequences


def test_batches_sequences_and_seeds_differ() -> None:
    tokens = token_file(100_000, 5)
    starts = [
        TokenBatches(tokens, BatchSizes(4, 1), seed).start(batch, sequence)
        for seed in range(5) for batch in range(5) for sequence in range(4)
    ]  # fmt: skip
    assert len(set(starts)) > 95


def test_starts_are_uniform() -> None:
    batches = TokenBatches(token_file(17, 7), BatchSizes(100, 1), 5)
    counts = np.bincount([batches.start(batch, sequence) for batch in range(50) for sequence in range(100)])
    assert len(counts) == 10  # the last possible start is drawn too
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-squared of 9 degrees: 1 in 1000


def test_random_tokens_cover_the_vocabulary() -> None:
    ids, targets = filled(RandomTokens(Geometry(11, 500, 1, 1, 1), BatchSizes(4, 2), 1), 0, 1, 1000)
    assert set(ids) == set(targets) == set(range(11))
    assert ids[1:500] == targets[:499]


@pytest.mark.parametrize("size", [59, 61])
def test_wrong_buffers_and_micro_batches_are_rejected(size: int) -> None:
    right, wrong = np.zeros(60, np.int32), np.zeros(size, np.int32)
    wide: Any = np.zeros(60, np.int64)
    sources: list[BatchSource] = [
        TokenBatches(token_file(99, 5), BatchSizes(24, 12), 0),
        RandomTokens(Geometry(9, 5, 1, 1, 1), BatchSizes(24, 12), 0),
        evaluation_batches(token_file(199, 5), batch_size=24, micro_batch=12, batches=1),
    ]
    for source in sources:
        for ids, targets in ((right, wrong), (wrong, right), (wide, right)):
            with pytest.raises(ValueError, match="needs int32"):
                source.fill(0, 0, ids, targets)
        for micro in (-1, 2):
            with pytest.raises(ValueError, match="micro-batches 0 to 1"):
                source.fill(0, micro, right, right)


def test_micro_batches_must_divide() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        TokenBatches(token_file(99, 5), BatchSizes(12, 5), 0)
    with pytest.raises(ValueError, match="windows start"):
        EvaluationWindows(token_file(9, 5), np.array([4]), 1)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 300), st.integers(1, 5), st.integers(1, 4), st.integers(1, 20))
def test_evaluation_windows(context: int, extra: int, micro_batch: int, per_batch: int, batches: int) -> None:
    tokens = token_file(context + 1 + extra, context)
    windows = evaluation_batches(tokens, batch_size=micro_batch * per_batch, micro_batch=micro_batch, batches=batches)
    starts, available = windows.starts.tolist(), (len(tokens) - 1) // context
    asked = micro_batch * per_batch * batches
    assert windows.micro_batches == len(starts) // micro_batch >= 1
    assert windows.tokens == len(starts) * context
    assert len(starts) % micro_batch == 0
    if available >= micro_batch:
        assert len(starts) > min(available, asked) - micro_batch
        assert all(b - a >= context for a, b in pairwise(starts))
        gaps = {b - a for a, b in pairwise(starts)}
        assert not gaps or max(gaps) - min(gaps) <= context
        if available <= asked and available % micro_batch == 0:
            assert starts == list(range(0, available * context, context))
    else:
        assert len(starts) == micro_batch
        assert micro_batch == 1 or (starts[0], starts[-1]) == (0, tokens.starts - 1)
    for micro in range(windows.micro_batches):
        ids, targets = filled(windows, micro, micro, micro_batch * context)
        assert ids[::context] == starts[micro * micro_batch : (micro + 1) * micro_batch]
        assert targets == [each + 1 for each in ids]
