"""The pipeline that encodes a corpus: equal to one document after another, and continued after a kill."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.data.made_tokenizers import MADE, TEXT
from threadloom.stages.data import encoding
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.documents import Document, LongDocument, Origin, Span
from threadloom.stages.data.encoding import pipeline, units as units_module
from threadloom.stages.data.encoding.journal import PreparationFolder
from threadloom.stages.data.encoding.lengths import length_percentiles, repeated_documents
from threadloom.stages.data.encoding.pipeline import encode_units
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.data.encoding.units import Unit, begin_source, document_units, text_units
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerError

ORIGIN = Origin(Path("made"))
KIND = np.dtype(np.uint16)
NAMES = ("train.npy", "validation.npy")


@cache
def qwen() -> LibraryTokenizer:
    return LibraryTokenizer(MADE["qwen"]())


Made = Document | tuple[str, ...]
"""A document, or the chunks of a long one."""


def documents(made: list[Made]) -> Iterator[Document | LongDocument]:
    for found in made:
        if isinstance(found, Document):
            yield found
        else:
            yield LongDocument(ORIGIN, sum(map(len, found)), iter(found))


def units_of(tokenizer: Tokenizer, train: list[Made], validation: list[Made]) -> Iterator[Unit]:
    yield begin_source(0)
    yield from document_units(0, tokenizer, documents(train))
    yield begin_source(1)
    yield from document_units(1, tokenizer, documents(validation))
    yield begin_source(0)
    yield from document_units(0, tokenizer, documents(train[:1]))


def expected(tokenizer: Tokenizer, made: list[Made]) -> tuple[list[int], list[int], list[bool]]:
    """Return ids, positions and marks of documents, one after another."""
    ids, positions, counted = list[int](), list[int](), list[bool]()
    for found in made:
        document = found if isinstance(found, Document) else Document("".join(found), ORIGIN)
        encoded = tokenizer.encode_document(document)
        own = encoded.ids.tolist()
        marks = [True] * len(own) if encoded.counted is None else encoded.counted.tolist()
        if tokenizer.end_of_text is not None:
            own, marks = [*own, tokenizer.end_of_text.id], [*marks, True]
        if own:
            positions.append(len(ids))
        ids, counted = ids + own, counted + marks
    return ids, positions, counted


def read(path: Path) -> tuple[list[int], list[int], list[bool]]:
    file = TokenFile.open(path, 1 << 16, 1)
    assert file.documents is not None
    counted = [True] * len(file) if file.counted is None else [bool(mark) for mark in file.counted]
    return file.ids.tolist(), file.documents.tolist(), counted


texts = st.text("ab é🙂\n", max_size=12)
made_documents = st.one_of(
    st.builds(lambda text: Document(text, ORIGIN), texts),
    st.builds(lambda text: Document(text + "x", ORIGIN, (Span(0, 1),), (Span(0, 1),)), texts),
    st.lists(texts.filter(bool), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=12)
@given(train=st.lists(made_documents, min_size=2, max_size=8), size=st.integers(1, 40), threads=st.integers(1, 3))
@pytest.mark.parametrize("name", ["qwen", "bytes"])
def test_files_are_those_of_one_document_after_another(
    name: str, tmp_path_factory: pytest.TempPathFactory, train: list[Made], size: int, threads: int
) -> None:
    tokenizer: Tokenizer = qwen() if name == "qwen" else BytesTokenizer()
    train = [Document("aa", ORIGIN), *train]
    validation: list[Made] = [Document("b b", ORIGIN, (Span(0, 1),)), ("a", "b")]
    folder = PreparationFolder(tmp_path_factory.mktemp("made"), ["key"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units_module, "BATCH_CHARACTERS", size)
        files = encode_units(
            lambda: units_of(tokenizer, train, validation), NAMES, tokenizer, KIND, folder, 100, threads
        )
    ids, positions, counted = expected(tokenizer, [*train, train[0]])
    assert read(files[0].path) == (ids, positions, counted)
    assert read(files[1].path) == expected(tokenizer, validation)
    assert files[0].sources == (0, len(expected(tokenizer, train)[0]))
    assert (files[0].tokens, files[0].documents, files[1].sources) == (len(ids), len(positions), (0,))


class Killed(BaseException):
    """The end of a process, for which nothing is cleaned up."""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_second_start_goes_on_where_the_last_commit_was(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = qwen()
    train: list[Made] = [
        Document(TEXT[at : at + 300], ORIGIN, (Span(3, 9),) if at > 900 else None) for at in range(0, 2400, 150)
    ]
    validation: list[Made] = [(TEXT[:400], TEXT[400:500])]
    monkeypatch.setattr(units_module, "BATCH_CHARACTERS", 256)
    monkeypatch.setattr(pipeline, "COMMIT_CHARACTERS", 600)
    encoded: list[int] = []
    add = SplitFiles.add

    def killed_add(self: SplitFiles, found: "encoding.encoder.EncodedUnits") -> None:
        add(self, found)
        encoded.append(len(found.ids))
        if len(encoded) == after:
            raise Killed

    def units() -> Iterator[Unit]:
        return units_of(tokenizer, train, validation)

    monkeypatch.setattr(SplitFiles, "add", killed_add)
    folder = PreparationFolder(tmp_path, ["key"])
    with pytest.raises(Killed):
        encode_units(units, NAMES, tokenizer, KIND, folder, 5000)
    committed = PreparationFolder(tmp_path, ["key"]).begin()
    before = len(encoded)
    files = encode_units(units, NAMES, tokenizer, KIND, PreparationFolder(tmp_path, ["key"]), 5000)
    assert read(files[0].path) == expected(tokenizer, [*train, train[0]])
    assert read(files[1].path) == expected(tokenizer, validation)
    monkeypatch.setattr(SplitFiles, "add", add)
    whole = encode_units(units, NAMES, tokenizer, KIND, PreparationFolder(tmp_path / "whole", ["key"]), 5000)
    for first, second in zip(files, whole, strict=True):
        assert first.path.read_bytes() == second.path.read_bytes()
    assert (committed.batches > 0) == (after > 3), "nothing, or something, had been committed"
    assert len(encoded) - before < 25 - committed.batches + 3


def test_another_key_begins_anew_and_so_do_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = BytesTokenizer()
    monkeypatch.setattr(units_module, "BATCH_CHARACTERS", 8)
    monkeypatch.setattr(pipeline, "COMMIT_CHARACTERS", 8)

    def encode(text: str, key: str) -> bytes:
        folder = PreparationFolder(tmp_path, [key])
        files = encode_units(
            lambda: text_units(0, tokenizer, [text[at : at + 4] for at in range(0, len(text), 4)]),
            NAMES[:1], tokenizer, KIND, folder, len(text),
        )  # fmt: skip
        assert files[0].documents is None
        return files[0].path.read_bytes()[-2 * len(text) :]

    assert encode("a" * 40, "a") == b"a\0" * 40
    assert encode("b" * 40, "b") == b"b\0" * 40
    path = PreparationFolder(tmp_path, ["b"]).path / NAMES[0]
    path.write_bytes(path.read_bytes()[:50])
    assert encode("b" * 40, "b") == b"b\0" * 40
    path.unlink()
    assert encode("b" * 40, "b") == b"b\0" * 40
    (path.parent / "journal.json").write_text("{")
    assert encode("b" * 40, "b") == b"b\0" * 40


def test_an_error_in_the_text_is_raised_as_it_is(tmp_path: Path) -> None:
    def units() -> Iterator[Unit]:
        return text_units(0, BytesTokenizer(), ["ab", "c\udcff"])

    with pytest.raises(TokenizerError, match=r"character 3 of the text"):
        encode_units(units, NAMES[:1], BytesTokenizer(), KIND, PreparationFolder(tmp_path, []), 4)


@settings(deadline=None, max_examples=20)
@given(
    train=st.lists(st.sampled_from(["a", "b", "cc", "ddd"]), min_size=1, max_size=12),
    held_out=st.lists(st.sampled_from(["a", "e", "cc"]), min_size=1, max_size=6),
)
def test_lengths_and_repeated_documents_are_counted(train: list[str], held_out: list[str]) -> None:
    training, validation = file_of(train), file_of(held_out)
    lengths = sorted(map(len, train))
    found = length_percentiles([training])
    assert found is not None
    assert found["0"] == lengths[0]
    assert found["50"] == lengths[-(-len(lengths) // 2) - 1]
    assert found["100"] == lengths[-1]
    repeats = repeated_documents(training, validation)
    assert repeats is not None
    new = [text for text in held_out if text not in train]
    assert repeats.training == len(train) - len(set(train))
    assert repeats.validation == len(held_out) - len(set(new))
    assert repeats.compared == 1.0
    share = repeated_documents(training, validation, limit=4)
    assert share is not None
    assert share.training <= repeats.training


def file_of(texts: list[str]) -> TokenFile:
    ids = np.frombuffer("".join(texts).encode(), np.uint8)
    positions = np.cumsum([0, *map(len, texts[:-1])]).astype(np.int64)
    return TokenFile(np.append(ids, [0, 0]).astype(np.uint16)[: len(ids)], 256, 0, Path("made"), documents=positions)
