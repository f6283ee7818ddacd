"""Token files: windows, types and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from threadloom.stages.data.token_file import DataError, TokenFile, counted_file, documents_file, token_type


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
def test_unsuitable_arrays_are_rejected(tmp_path: Path, ids: NDArray[Any], word: str) -> None:
    path = save(tmp_path / "x.npy", ids)
    with pytest.raises(DataError, match=word) as caught:
        TokenFile.open(path, vocab_size=9, context=7)
    assert caught.value.subject == str(path)


def test_damaged_files_are_rejected(tmp_path: Path) -> None:
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
def test_ids_outside_the_vocabulary_are_detected(data: st.DataObject) -> None:
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


def test_documents_and_the_tokens_that_count_are_read_from_files_beside(tmp_path: Path) -> None:
    path = save(tmp_path / "train.npy", np.arange(20, dtype=np.uint16))
    plain = TokenFile.open(path, 20, 7)
    assert (plain.documents, plain.counted) == (None, None)
    save(documents_file(path), np.array([0, 3, 19]))
    save(counted_file(path), np.arange(20, dtype=np.uint8) % 2)
    tokens = TokenFile.open(path, 20, 7).with_context(5)
    assert tokens.documents is not None
    assert tokens.counted is not None
    assert (tokens.documents.tolist(), tokens.counted.tolist()) == ([0, 3, 19], [0, 1] * 10)
    assert {file.name for file in tmp_path.iterdir()} == {"train.npy", "train.documents.npy", "train.counted.npy"}


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.array([1, 3]), "positions from 0 to less than 20, the tokens of train.npy"),
        (np.array([0, 20]), "positions from 0"),
        (np.zeros(0, np.int64), "positions from 0"),
        (np.zeros(3, np.int32), "one dimension of int64"),
        (np.ones(19, np.uint8), "a mark for each of the 20 tokens of train.npy"),
    ],
)
def test_files_beside_that_belong_to_others_are_rejected(tmp_path: Path, array: NDArray[Any], word: str) -> None:
    path = save(tmp_path / "train.npy", np.arange(20, dtype=np.uint16))
    beside = save((counted_file if array.dtype == np.uint8 else documents_file)(path), array)
    with pytest.raises(DataError, match=word) as caught:
        TokenFile.open(path, 20, 7)
    assert caught.value.subject == str(beside)
