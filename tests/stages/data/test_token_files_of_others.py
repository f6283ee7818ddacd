"""Token files of nanoGPT and llm.c, and .npy files, as texts; the oracle are arrays that NumPy wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.stages.data.made_tokenizers import MADE, TEXT
from threadloom.stages.config import Config, ConfigError, Gpt2Config
from threadloom.stages.data.corpus import read_corpus
from threadloom.stages.data.dataset import Dataset, prepare, require_same_text
from threadloom.stages.data.number_tokenizer import NumberTokenizer
from threadloom.stages.data.sources.token_files import LARGEST, ids_of_text, text_of_ids
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.token_file import DataError
from threadloom.stages.data.tokenizer import TokenizerError
from threadloom.stages.data.tokenizer_files import load_tokenizer
from threadloom.stages.resolve import apply_overrides

IDS = np.random.default_rng(1).integers(0, 50_257, 1000)


def llm_c(ids: NDArray[Any], magic: int, version: int, kind: str) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + ids.astype(kind).tobytes()


FILES = {
    "nanogpt.bin": IDS.astype("<u2").tobytes(),
    "llmc1.bin": llm_c(IDS, 20240520, 1, "<u2"),
    "llmc2.bin": llm_c(IDS, 20240520, 2, "<u4"),
    "llama3.bin": llm_c(IDS, 20240801, 7, "<u4"),
}


def config(*overrides: str) -> Config:
    base = Config(name="x", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    return apply_overrides(base, overrides)


def prepared(directory: Path, *overrides: str) -> Dataset:
    made = config(*overrides)
    return prepare(made.data, made.model, read_corpus(made.data), directory)


@pytest.mark.parametrize("name", [*FILES, "ids.npy"])
def test_ids_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "ids.npy":
        np.save(path, IDS.astype(np.uint16))
    else:
        path.write_bytes(FILES[name])
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # never opened
    data = prepared(tmp_path / "data", f"data.text={path}")
    assert np.concatenate([data.train.ids, data.validation.ids]).tolist() == IDS.tolist()
    assert len(data.train) == 900
    assert data.tokenizer.vocab_size == IDS.max() + 1 == data.train.vocab_size
    assert data.tokenizer.decode(data.train.ids[:3]) == " ".join(map(str, IDS[:3]))
    again = prepared(tmp_path / "data", f"data.text={path}", f"model.vocab_size={IDS.max() + 1}")
    assert again.reused
    assert again.tokenizer.encode("5 17").tolist() == [5, 17]
    require_same_text(tmp_path / "data", read_corpus(config(f"data.text={path}").data))
    path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    with pytest.raises(DataError, match="another one"):
        require_same_text(tmp_path / "data", read_corpus(config(f"data.text={path}").data))


def test_several_files_a_validation_file_and_a_mixture(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"shard_{number}.bin").write_bytes(IDS[250 * number :][:250].astype("<u2").tobytes())
    np.save(tmp_path / "val.npy", np.arange(60_000, 60_020, dtype=np.uint16))
    validation = f"data.validation_text={tmp_path / 'val.npy'}"
    data = prepared(tmp_path / "one", f"data.text={tmp_path / 'shard_*.bin'}", validation, "data.tokenizer=bpe")
    assert data.train.ids.tolist() == IDS.tolist()
    assert data.validation.ids.tolist() == list(range(60_000, 60_020))
    assert data.tokenizer.vocab_size == 60_020
    texts = json.dumps([str(tmp_path / "shard_1.bin"), str(tmp_path / "shard_0.bin")])
    mixed = prepared(tmp_path / "two", f"data.text={texts}", "data.mixture=[1,2]", validation)
    assert mixed.train.ids.tolist() == [*IDS[250:500].tolist(), *IDS[:250].tolist()]
    assert mixed.manifest.train.sources == (0, 250)
    (tmp_path / "a.txt").write_text("text")
    for overrides in (
        [f"data.text={json.dumps([str(tmp_path / 'a.txt'), str(tmp_path / 'val.npy')])}"],
        [f"data.text={tmp_path / 'a.txt'}", validation],
    ):
        with pytest.raises(TextError, match=r"val\.npy: expected texts alone, or token files alone.*text in .*a\.txt"):
            prepared(tmp_path / "three", *overrides)


def test_an_existing_tokenizer_decodes_the_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(MADE["qwen"]())
    library = load_tokenizer(tmp_path / "tokenizer.json")
    ids = library.encode(TEXT)
    np.save(tmp_path / "ids.npy", ids)
    given = (f"data.text={tmp_path / 'ids.npy'}", "data.tokenizer=pretrained", f"data.tokenizer_path={tmp_path}")
    data = prepared(tmp_path / "data", *given)
    assert data.tokenizer.decode(np.concatenate([data.train.ids, data.validation.ids])) == TEXT
    assert data.tokenizer.vocab_size == library.vocab_size
    again = prepared(tmp_path / "data", *given)
    assert again.reused
    assert again.tokenizer.encode("the cat").tolist() == data.tokenizer.encode("the cat").tolist()
    np.save(tmp_path / "ids.npy", np.full(100, library.vocab_size, np.uint16))
    with pytest.raises(ConfigError, match=r"data\.tokenizer_path: expected a tokenizer with the ids"):
        prepared(tmp_path / "data", *given)


WRONG = {
    "magic": (llm_c(IDS, 20240326, 3, "<u2"), "magic number 20240520 with version 1.*got 20240326 with version 3"),
    "version": (llm_c(IDS, 20240520, 9, "<u2"), "got 20240520 with version 9"),
    "truncated": (FILES["llmc1.bin"][:-5], "3,024 bytes for the 1,000 tokens in its header, got 3,019 bytes"),
    "appended": (FILES["llmc2.bin"] + b"\0\0", "5,024 bytes for the 1,000 tokens"),
    "odd": (FILES["nanogpt.bin"][:-1], "an even number of bytes: uint16 ids without a header.*got 1,999 bytes"),
    "large": (llm_c(np.array([1, 2**31]), 20240801, 7, "<u4"), "id 2,147,483,648 at position 1"),
    "empty": (llm_c(IDS[:0], 20240520, 1, "<u2"), "no character"),
}


@pytest.mark.parametrize("name", WRONG)
def test_damaged_files_are_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    content, word = WRONG[name]
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(TextError, match=rf"x\.bin: .*{word}"):
        read_text([tmp_path / "x.bin"])


def test_arrays_of_other_types_and_orders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, word in ((IDS, "int64"), (np.array([1, -1], np.int32), "id -1 at position 1"), (IDS[None], "shape")):
        np.save(path, array)
        with pytest.raises(TextError, match=rf"x\.npy: .*{word}"):
            read_text([path])
    np.save(path, IDS.astype(np.uint16))
    (tmp_path / "token_order.npy").touch()
    with pytest.raises(TextError, match=r"rows of the order in token_order\.npy"):
        read_text([path])


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(FILES["nanogpt.bin"])
    with pytest.raises(ConfigError, match=rf"model\.vocab_size: expected at least {IDS.max() + 1}.*got 10000"):
        prepared(tmp_path / "data", f"data.text={tmp_path / 'x.bin'}", "model.vocab_size=10000")
    large = prepared(tmp_path / "data", f"data.text={tmp_path / 'x.bin'}", "model.vocab_size=50304")
    assert large.tokenizer.vocab_size == IDS.max() + 1


def test_a_text_with_the_suffix_bin_is_text(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_text("häßlich " * 600)
    assert read_text([tmp_path / "x.bin"]).read() == "häßlich " * 600


@given(st.lists(st.integers(0, LARGEST)))
def test_ids_and_their_characters(ids: list[int]) -> None:
    text = text_of_ids(np.array(ids, np.int64))
    assert len(text) == len(ids)
    assert text.encode().decode() == text  # no surrogates
    assert ids_of_text(text).tolist() == ids


@given(st.lists(st.integers(0, 99)), st.data())
def test_numbers_are_encoded_in_any_chunks(ids: list[int], data: st.DataObject) -> None:
    tokenizer = NumberTokenizer(100)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text).tolist() == ids
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [int(token) for part in tokenizer.encode_chunks(filter(None, chunks)) for token in part] == ids
    assert tokenizer.decode(ids[:1]) + tokenizer.decode_following(ids[1:]) == text


def test_a_text_that_is_not_made_of_numbers_is_refused() -> None:
    for text in ("1 two", "100", "-1", "1.5", "١"):
        with pytest.raises(TokenizerError):
            NumberTokenizer(100).encode(text)
