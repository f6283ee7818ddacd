"""Texts in chunks: the same text, tokens and tokenizer as in one piece, whatever the chunks cut."""

import gzip
import hashlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings, strategies as st

from threadloom.stages.config import Config, Gpt2Config, TokenizerKind
from threadloom.stages.data.bpe_training import train_byte_pairs
from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS, ChunkedText, StringText, split_at
from threadloom.stages.data.dataset import prepare
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.token_file import TokenWriter
from threadloom.stages.resolve.loading import apply_overrides

pytestmark = pytest.mark.timeout(60)
PIECES = (
    "\ufeff",
    "\r\n",
    "\n",
    "\r",
    "é",
    "猫",
    "😀",
    "e\u0301",
    " ",
    "the cat",
    "'s",
    "x" * 300,
    "<|endoftext|>",
    "\t ",
)
CONTENT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def joined(contents: list[str]) -> str:
    """Return the text of files by its definition: marks dropped, files separated by line ends."""
    texts = [content.removeprefix("\ufeff") for content in contents]
    ended = [text + "\n" if text and text[-1] not in "\r\n" else text for text in texts[:-1]]
    return "".join([*ended, texts[-1]])


def write(folder: Path, contents: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        data = content.encode()
        (folder / f"{number:03}.txt").write_bytes(gzip.compress(data) if number % 3 == 2 else data)


@settings(deadline=None, max_examples=60)
@example(contents=["abc\ufeffdef", "\ufeff", "\r", "e"], size=3)  # a mark at the start of a chunk, not of its file
@given(contents=st.lists(CONTENT, min_size=1, max_size=6), size=st.integers(1, 9))
def test_the_text_of_files_does_not_depend_on_chunks(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], size: int
) -> None:
    folder, expected = tmp_path_factory.mktemp("text"), joined(contents)
    write(folder, contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threadloom.stages.data.text_decoding.CHUNK_BYTES", size)
        if not expected.strip("\n") and not any(content.removeprefix("\ufeff") for content in contents):
            with pytest.raises(TextError, match="no character"):
                read_text([folder])
            return
        text = read_text([folder])
        chunks = list(text.chunks())
    assert "".join(chunks) == text.read() == expected
    assert all(0 < len(chunk) <= size for chunk in chunks)
    assert text.characters == len(expected)
    assert text.checksum() == StringText(expected).checksum() == hashlib.sha256(expected.encode()).hexdigest()
    counts = {chr(point): count for point, count in enumerate(text.character_counts) if count}
    assert counts == {character: expected.count(character) for character in set(expected)}


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES, TokenizerKind.BPE])
def test_a_preparation_in_chunks_is_that_of_the_whole_text(
    tmp_path: Path, kind: TokenizerKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of each split and the tokenizer are those that the library computes from one string."""
    monkeypatch.setattr("threadloom.stages.data.text_decoding.CHUNK_BYTES", 11)
    monkeypatch.setattr("threadloom.stages.data.text_splitting.CHUNK", 16)
    monkeypatch.setattr("threadloom.stages.data.text_splitting.LONGEST", 64)
    contents = ["".join(PIECES[i * j % len(PIECES)] for j in range(40)) for i in range(12)]
    write(tmp_path / "text", contents)
    whole = joined(contents)
    cut = int(len(whole) * 0.7)
    model = Gpt2Config(context=4, layers=1, heads=1, channels=4, vocab_size=300)
    config = apply_overrides(
        Config(name="x", model=model, batch_size=4, steps=3),
        [f"data.tokenizer={kind.value}", "data.train_fraction=0.7"],
    )
    data = prepare(config.data, config.model, read_text([tmp_path / "text"]), tmp_path / "data")
    assert (data.manifest.train.characters, data.manifest.validation.characters) == (cut, len(whole) - cut)
    for tokens, part in ((data.train, whole[:cut]), (data.validation, whole[cut:])):
        if kind is TokenizerKind.BPE:
            library = tokenizers.Tokenizer.from_str(train_byte_pairs([whole[:cut]], 300))
            library.encode_special_tokens = True  # data.special_tokens=text
            assert tokens.ids.tolist() == library.encode(part).ids
        elif kind is TokenizerKind.BYTES:
            assert tokens.ids.tolist() == list(part.encode())
        else:
            alphabet = sorted(set(whole))
            assert tokens.ids.tolist() == [alphabet.index(character) for character in part]


@given(parts=st.lists(st.text("abc", min_size=1, max_size=5), max_size=6), cut=st.integers(0, 40))
def test_a_text_is_split_at_a_character(parts: list[str], cut: int) -> None:
    first, rest = map("".join, split_at(parts, cut))
    assert (first, rest) == ("".join(parts)[:cut], "".join(parts)[cut:])
    assert StringText("".join(parts)).first(cut).read() == first


def test_a_file_that_changes_while_it_is_used_is_reported(tmp_path: Path) -> None:
    """A file that grows, as a log does, keeps the text that it had."""
    file = tmp_path / "a.txt"
    file.write_text("some text\n")
    text = read_text([file, file])
    with file.open("a") as log:
        log.write("more é\n")
    assert text.read() == "some text\n" * 2
    for content in ("some", "another text\n", ""):
        file.write_text(content)
        with pytest.raises(TextError, match=r"a\.txt: expected the text that it had when it was read first"):
            text.read()
    file.unlink()
    with pytest.raises(TextError, match="No such file"):
        text.read()


class _Stopped(ChunkedText):
    """A text that is stopped in the middle, as by a signal, when it is read for the second time."""

    characters = 200

    def __init__(self) -> None:
        self.reads = 0

    def chunks(self) -> Iterator[str]:
        self.reads += 1
        yield "ab" * 50
        if self.reads > 2:  # by a stage of the preparation's pipeline
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        yield "ab" * 50


def test_a_stopped_preparation_leaves_nothing_but_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    config = Config(name="x", model=Gpt2Config(context=4, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    with pytest.raises(KeyboardInterrupt):
        prepare(config.data, config.model, _Stopped(), tmp_path)  # read for its checksum, its characters, its ids
    assert [path.name for path in tmp_path.iterdir()] == [".preparing"]


@pytest.mark.parametrize(("kind", "count"), [("uint16", 0), ("uint16", 7), ("uint32", 123_456)])
def test_a_token_file_is_written_as_by_numpy(tmp_path: Path, kind: str, count: int) -> None:
    ids = np.arange(count, dtype=np.int32) % 60_000
    np.save(tmp_path / "expected.npy", ids.astype(kind))
    with (tmp_path / "file.npy").open("wb") as file:
        writer = TokenWriter(file, np.dtype(kind))
        for part in np.array_split(ids, 5):
            writer.add(part)
        writer.finish()
        assert writer.count == count
    assert (tmp_path / "file.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_strings_are_read_in_chunks() -> None:
    text = "aé" * CHUNK_CHARACTERS
    assert [len(chunk) for chunk in StringText(text).chunks()] == [CHUNK_CHARACTERS] * 2
    assert StringText(text).read() == text
