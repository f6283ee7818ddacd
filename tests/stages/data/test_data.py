"""Token files, batches and the preparation of a text."""

import errno
import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from threadloom.stages.config import BatchSizes, Config, ModelConfig
from threadloom.stages.data.batches import (
    BatchSource,
    EvaluationWindows,
    RandomTokens,
    TokenBatches,
    evaluation_batches,
)
from threadloom.stages.data.dataset import Dataset, prepare
from threadloom.stages.data.token_file import DataError, TokenFile, token_type
from threadloom.stages.models import Geometry
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve


def prepared(config: Config, text: str, directory: Path) -> Dataset:
    return prepare(config.data, config.model, text, directory)


# --- token files ------------------------------------------------------------------------------------------------------


def save(path: Path, ids: Any) -> Path:
    np.save(path, ids, allow_pickle=True)
    return path


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32", "uint32"])
def test_windows_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "x.npy", np.arange(10, 31, dtype=kind))
    tokens = TokenFile.open(path, vocab_size=31, context=7)
    assert (len(tokens), tokens.starts) == (21, 14)
    ids, targets = np.zeros(7, np.int32), np.zeros(7, np.int32)
    for start in (0, 5, 13):
        tokens.read(start, ids, targets)
        assert ids.tolist() == list(range(10 + start, 17 + start))
        assert targets.tolist() == list(range(11 + start, 18 + start))
    assert not tokens.ids.flags.writeable


def test_token_types() -> None:
    assert [token_type(size).name for size in (2, 65536, 65537, 10**6)] == ["uint16", "uint16", "uint32", "uint32"]


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        (np.zeros((4, 5), np.uint16), r"shape \(4, 5\)"),
        (np.zeros(20, np.int64), "int64"),
        (np.zeros(20, np.float32), "float32"),
        (np.zeros(20, ">u2"), ">u2"),
        (np.zeros((), np.uint16), r"shape \(\)"),
        (np.array([{"a": 1}] * 20, object), "object"),
        (np.zeros(7, np.uint16), "at least 8 tokens.*got 7"),
        (np.zeros(0, np.uint16), "at least 8 tokens.*got 0"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, ids: NDArray[Any], word: str) -> None:
    path = save(tmp_path / "x.npy", ids)
    with pytest.raises(DataError, match=word) as caught:
        TokenFile.open(path, vocab_size=9, context=7)
    assert caught.value.subject == str(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.zeros(1000, np.uint16))
    whole = path.read_bytes()
    for damaged, word in (
        (whole[:-1], "2,128 bytes for the 1,000 tokens.*got 2,127 bytes.*truncated"),
        (whole[:500], "got 500 bytes"),
        (whole[:60], "a NumPy file"),
        (whole[:7], "a NumPy file"),
        (b"", "a NumPy file"),
        (whole + b"x", "appended"),
        (b"PK\3\4" + whole, "a NumPy file"),
        (whole.replace(b"(1000,)", b"(1e99,)"), "a NumPy file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=word):
            TokenFile.open(path, vocab_size=9, context=7)
    with pytest.raises(DataError, match="No such file"):
        TokenFile.open(tmp_path / "none.npy", vocab_size=9, context=7)


@settings(deadline=None)
@given(st.data())
def test_an_id_outside_of_the_vocabulary_never_gets_through(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["uint8", "uint16", "int32", "uint32"]))
    wrong = data.draw(st.integers(9, np.iinfo(kind).max) | st.integers(min(-1, np.iinfo(kind).min), -1))
    if wrong < np.iinfo(kind).min:
        wrong = 9
    at, start = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 14))
    array = np.zeros(20, kind)
    array[at] = wrong
    tokens = TokenFile(array, 9, 5, Path("some.npy"))
    ids, targets = np.zeros(5, np.int32), np.zeros(5, np.int32)
    if start <= at <= start + 5:
        with pytest.raises(DataError, match=f"some.npy: .*from 0 to 8.*id {wrong} at position {at}"):
            tokens.read(start, ids, targets)
    else:
        tokens.read(start, ids, targets)
        assert not ids.any()
        assert not targets.any()


# --- batches ----------------------------------------------------------------------------------------------------------


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 of Salmon et al. 2011, written from the paper in Python's integers."""
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


def test_the_twin_of_philox_gives_the_known_answer_of_its_authors() -> None:
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


def test_the_drawn_starts_stay_what_they_are() -> None:
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
def test_sequences_do_not_move_with_micro_batches_or_order(
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
    assert filled(source(24, 12), batch, 0, 60) == whole  # more accumulation adds sequences behind


def test_batches_sequences_and_seeds_differ() -> None:
    tokens = token_file(100_000, 5)
    starts = [
        TokenBatches(tokens, BatchSizes(4, 1), seed).start(batch, sequence)
        for seed in range(5) for batch in range(5) for sequence in range(4)
    ]  # fmt: skip
    assert len(set(starts)) > 95


def test_starts_are_spread_evenly() -> None:
    batches = TokenBatches(token_file(17, 7), BatchSizes(100, 1), 5)
    counts = np.bincount([batches.start(batch, sequence) for batch in range(50) for sequence in range(100)])
    assert len(counts) == 10  # the last window that fits is drawn too
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-squared of 9 degrees: 1 in 1000


def test_random_tokens_cover_the_vocabulary() -> None:
    ids, targets = filled(RandomTokens(Geometry(11, 500, 1, 1, 1), BatchSizes(4, 2), 1), 0, 1, 1000)
    assert set(ids) == set(targets) == set(range(11))
    assert ids[1:500] == targets[:499]


@pytest.mark.parametrize("size", [59, 61])
def test_wrong_buffers_and_micro_batches_are_refused(size: int) -> None:
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


# --- evaluation -------------------------------------------------------------------------------------------------------


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


# --- preparing a text -------------------------------------------------------------------------------------------------

TEXT = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(2000)) + "\n"


def config(*overrides: str) -> Config:
    base = Config(name="x", model=ModelConfig(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    return apply_overrides(base, overrides)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_a_text_is_split_first_and_then_tokenised(tmp_path: Path, kind: str) -> None:
    data = prepared(config(f"data.tokenizer={kind}", "model.vocab_size=300"), TEXT, tmp_path / "deep" / "er")
    cut = 1800  # int(2001 * 0.9)
    assert data.tokenizer.decode(data.train.ids) == TEXT[:cut]
    assert data.tokenizer.decode(data.validation.ids) == TEXT[cut:]
    assert (data.manifest.train.characters, data.manifest.validation.characters) == (cut, len(TEXT) - cut)
    assert (data.manifest.train.tokens, data.manifest.validation.tokens) == (len(data.train), len(data.validation))
    assert data.manifest.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert data.manifest.vocab_size == data.tokenizer.vocab_size == data.train.vocab_size
    assert data.train.ids.dtype == np.uint16
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == [
        "manifest.json", "tokenizer.json", "train.npy", "validation.npy",
    ]  # fmt: skip


def test_tiny_shakespeare_is_split_as_by_nanogpt(tmp_path: Path) -> None:
    alphabet = "".join(chr(33 + i) for i in range(65))
    data = prepared(config(), (alphabet * 17160)[:1_115_394], tmp_path)  # its length and number of characters
    assert (len(data.train), len(data.validation), data.tokenizer.vocab_size) == (1_003_854, 111_540, 65)


def test_an_up_to_date_directory_is_used_again(tmp_path: Path) -> None:
    first = prepared(config(), TEXT, tmp_path)
    resolved = resolve(config(), 2, first.tokenizer.vocab_size)
    again = prepared(resolved, TEXT, tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifest == first.manifest
    assert again.tokenizer.encode(TEXT).tolist() == first.tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("change", ["data.train_fraction=0.8", "data.alphabet=9", "data.tokenizer=bytes", "text"])
def test_what_has_changed_is_made_anew(tmp_path: Path, change: str) -> None:
    prepared(config(), TEXT, tmp_path)
    text = "Z" + TEXT[1:] if change == "text" else TEXT
    changed = config() if change == "text" else config(change)
    data, fresh = prepared(changed, text, tmp_path), prepared(changed, text, tmp_path / "fresh")
    assert not data.reused
    assert data.manifest == fresh.manifest
    assert data.train.ids.tolist() == fresh.train.ids.tolist()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train.npy", "validation.npy"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_damaged_directory_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    expected = prepared(config(), TEXT, tmp_path).train.ids.tolist()
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-3])
    data = prepared(config(), TEXT, tmp_path)
    assert not data.reused
    assert data.train.ids.tolist() == expected
    assert prepared(config(), TEXT, tmp_path).reused


def test_a_split_that_is_too_short_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 9 tokens.*got 8") as caught:
        prepared(config(), TEXT[:80], tmp_path / "none")
    assert caught.value.subject.endswith("validation.npy")
    with pytest.raises(DataError, match="got empty files"):
        prepared(config(), "", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: no file may grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_reported_and_nothing_is_left_half(tmp_path: Path) -> None:
    with file_size_limit(1000), pytest.raises(DataError, match=r"token files written.*free some space"):
        prepared(config(), TEXT, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not prepared(config(), TEXT, tmp_path).reused


def test_a_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=os.strerror(errno.EEXIST)):
        prepared(config(), TEXT, tmp_path / "file")


def test_batches_of_a_configuration(tmp_path: Path) -> None:
    made = config("gradient_accumulation_steps=3", "micro_batch=2", "seed=5")
    data = prepared(made, TEXT, tmp_path)
    resolved = resolve(made, 2, data.tokenizer.vocab_size)
    assert resolved.batch_sizes == BatchSizes(12, 2)
    assert data.train.vocab_size == data.tokenizer.vocab_size
    source = RandomTokens(resolved.model.geometry(), resolved.batch_sizes, resolved.seed)
    assert max(filled(source, 4, 5, 16)[0]) < data.tokenizer.vocab_size
