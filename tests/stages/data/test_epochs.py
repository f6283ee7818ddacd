"""Training sequences by epochs: every window once in each, whatever the batches, and other windows in the next."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.support import assert_same, build, result, run_sequence, run_threads, tiny
from threadloom.stages.config import BatchSizes, Shuffle
from threadloom.stages.data.batches import TokenBatches
from threadloom.stages.data.epochs import EpochWindows
from threadloom.stages.data.token_file import TokenFile


def token_file(count: int, context: int) -> TokenFile:
    return TokenFile(np.arange(count, dtype=np.uint32), count, context, Path("memory"))


def source(tokens: TokenFile, sizes: BatchSizes, seed: int = 7) -> TokenBatches:
    return TokenBatches(tokens, sizes, seed, shuffle=Shuffle.EPOCHS)


def starts(tokens: TokenFile, sequences: int, batches: int, seed: int = 7) -> list[int]:
    made = source(tokens, BatchSizes(sequences, 1), seed)
    return [made.start(batch, sequence) for batch in range(batches) for sequence in range(sequences)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_an_epoch_has_every_window_once(context: int, extra: int, sequences: int, seed: int) -> None:
    tokens = token_file(context + extra, context)
    windows = EpochWindows(len(tokens), context, seed)
    count = windows.count
    found = starts(tokens, sequences, -(-2 * count // sequences), seed)
    for epoch in (0, 1):
        offset = windows.offset(epoch)
        assert 0 <= offset < context
        expected = list(range(offset, offset + count * context, context))
        assert sorted(found[epoch * count : (epoch + 1) * count]) == expected
        assert expected[-1] + context < len(tokens)
    assert len(tokens) - count * context < 2 * context  # tokens that no window of an epoch begins in


def test_sequences_do_not_depend_on_the_sizes_of_batches() -> None:
    tokens = token_file(500, 5)
    found = starts(tokens, 1, 240)
    for sequences in (2, 3, 12, 80):
        assert starts(tokens, sequences, 240 // sequences) == found


def test_epochs_and_seeds_differ() -> None:
    tokens = token_file(2000, 5)
    count = EpochWindows(2000, 5, 7).count
    first, second = starts(tokens, count, 2)[:count], starts(tokens, count, 2)[count:]
    assert {each % 5 for each in first} != {each % 5 for each in second}
    assert [each // 5 for each in first] != [each // 5 for each in second]
    assert starts(tokens, count, 1, seed=8) != first


def test_offsets_of_epochs_are_uniform() -> None:
    counts = np.bincount([EpochWindows(999, 10, 5).offset(epoch) for epoch in range(5000)])
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-squared of 9 degrees: 1 in 1000


@pytest.mark.parametrize("overrides", [(), ("delay=2", "gradient_accumulation_steps=2", "threads.forward=2")])
def test_a_run_across_epochs_is_replayed(overrides: tuple[str, ...]) -> None:
    """The file has 9 windows: an epoch ends inside an update, and six updates are several epochs."""
    config = tiny("data.shuffle=epochs", *overrides)
    ids = np.random.default_rng(2).integers(0, 13, 73).astype(np.uint16)
    data = source(TokenFile(ids, 13, 7, Path("memory")), config.batch_sizes)
    threads, alone = build(config, data=data), build(config, data=data)
    assert_same(result(threads, run_threads(threads)), result(alone, run_sequence(alone)))
