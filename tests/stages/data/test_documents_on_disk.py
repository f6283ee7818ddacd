"""Texts of documents in token files: positions, the end of text, the held-out share, validation texts, mixtures."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.data.made_tokenizers import MADE
from threadloom.stages.config import BatchSizes, Config, ConfigError, Gpt2Config
from threadloom.stages.data.batches import TokenBatches
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.corpus import Corpus, read_corpus
from threadloom.stages.data.dataset import Dataset, prepare, require_same_text
from threadloom.stages.data.documents import Document, Origin, Span
from threadloom.stages.data.encoding.encoder import EncodedUnits
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.data.mixture import Mixture
from threadloom.stages.data.sources.records import MakeDocument
from threadloom.stages.data.sources.registry import Reading
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.text_record import write_sources
from threadloom.stages.data.token_file import DataError
from threadloom.stages.resolve import apply_overrides, resolve, validate
from threadloom.stages.resolve.trajectory_settings import trajectory

DOCUMENTS = [f"document {number}: " + "ab cd " * (number % 7) + "é" for number in range(40)]


def config(*overrides: str) -> Config:
    base = Config(name="x", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    return apply_overrides(base, overrides)


def write_records(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def prepared(made: Config, directory: Path) -> Dataset:
    return prepare(made.data, made.model, read_corpus(made.data), directory)


def documents_of(data: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of each document of both splits."""
    found = []
    for file in (data.train, data.validation):
        assert file.documents is not None
        ends = [*file.documents[1:].tolist(), len(file)]
        found.append([file.ids[a:b].tolist() for a, b in zip(file.documents.tolist(), ends, strict=True)])
    return found[0], found[1]


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_documents_are_followed_by_the_end_of_text_and_held_out_whole(tmp_path: Path, kind: str) -> None:
    path = write_records(tmp_path / "a.jsonl", DOCUMENTS)
    data = prepared(config(f"data.tokenizer={kind}", "model.vocab_size=300", f"data.text={path}"), tmp_path / "data")
    end = [data.tokenizer.end_of_text.id] if data.tokenizer.end_of_text else []
    train, validation = documents_of(data)
    assert train + validation == [data.tokenizer.encode(text).tolist() + end for text in DOCUMENTS]
    assert len(end) == (kind == "bpe")
    sizes = np.cumsum([len(text) + 1 for text in DOCUMENTS])
    assert len(train) == np.count_nonzero(sizes <= 0.9 * sizes[-1])
    assert (data.manifest.train.documents, data.manifest.validation.documents) == (len(train), len(validation))
    assert (data.train.counted, data.validation.counted) == (None, None)
    assert {file.name for file in (tmp_path / "data").iterdir()} == {
        "manifest.json", "tokenizer.json", "train.npy", "validation.npy", "train.documents.npy",
        "validation.documents.npy",
    }  # fmt: skip


@dataclass(frozen=True)
class Halves:
    """Documents whose second half counts, if their number is odd."""

    needs = "text"

    def opened(self) -> AbstractContextManager[MakeDocument]:
        return nullcontext(self.document)

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        return names

    def document(self, fields: Mapping[str, Any], origin: Origin) -> Document:
        text = fields["text"]
        assert origin.record is not None
        return Document(text, origin, (Span(len(text) // 2, len(text)),) if origin.record % 2 else None)


def test_tokens_that_do_not_count_are_marked(tmp_path: Path) -> None:
    texts = [f"{number:05}|" + "x" * number for number in range(2, 30)]
    path = write_records(tmp_path / "a.jsonl", texts)
    made = config("data.tokenizer=bytes", "data.train_fraction=0.5")
    text = read_text([path], reading=Reading(Halves()))
    data = prepare(made.data, made.model, text, tmp_path / "data")
    assert data.train.counted is not None
    assert data.validation.counted is not None
    marks = np.concatenate([data.train.counted, data.validation.counted]).tolist()
    expected: list[int] = []
    for number, found in enumerate(texts, start=1):
        expected += [int(not number % 2 or n >= len(found) // 2) for n in range(len(found))]
    assert marks == expected
    plain = read_text([path])
    assert plain.checksum() != text.checksum()  # the parts that count are part of the text
    again = prepare(made.data, made.model, plain, tmp_path / "data")
    assert not again.reused
    assert again.train.counted is None
    assert not (tmp_path / "data" / "train.counted.npy").exists()


@settings(deadline=None, max_examples=10)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=6), st.data())
def test_any_split_into_files_gives_equal_ids(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    texts = ["long enough for a window", *texts, "long enough, too: for validation"]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=3)))
    for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(texts)], strict=True)):
        write_records(folder / f"{number}.jsonl", texts[a:b])
    made = config("data.tokenizer=bytes", f"data.text={folder}", "data.train_fraction=0.5")
    directory = tmp_path_factory.mktemp("prepared")
    found = prepared(made, directory)
    train, validation = documents_of(found)
    assert train + validation == [list(text.encode()) for text in texts if text]
    assert prepared(made, directory).reused


def test_one_document_is_not_cut(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", ["one long document " * 20])
    with pytest.raises(DataError, match=r"at least two documents.*data\.validation_text"):
        prepared(config(f"data.text={path}"), tmp_path / "data")
    other = write_records(tmp_path / "b.jsonl", ["another one, for validation"])
    data = prepared(config(f"data.text={path}", f"data.validation_text={other}"), tmp_path / "data")
    assert [len(found) for found in documents_of(data)] == [1, 1]


def test_a_directory_with_another_file_of_documents_is_prepared_again(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", DOCUMENTS)
    made, directory = config(f"data.text={path}"), tmp_path / "data"
    expected = documents_of(prepared(made, directory))
    assert prepared(made, directory).reused
    beside = directory / "train.documents.npy"
    content = beside.read_bytes()
    for damaged in (None, content[:-8] + b"\1" * 8, content[:-3]):
        beside.unlink() if damaged is None else beside.write_bytes(damaged)
        again = prepared(made, directory)
        assert not again.reused
        assert documents_of(again) == expected
    np.save(directory / "train.counted.npy", np.zeros(len(prepared(made, directory).train), np.uint8))
    assert not prepared(made, directory).reused
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    assert not prepared(made, directory).reused
    (tmp_path / "b.txt").write_text("plain text " * 50)
    assert prepared(config(f"data.text={tmp_path / 'b.txt'}"), directory).train.documents is None
    assert not beside.exists()


def test_a_validation_text_of_ones_own(tmp_path: Path) -> None:
    text, other = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("abcdefgh" * 20)
    other.write_text("hgfedcba" * 3)
    made, directory = config(f"data.text={text}", f"data.validation_text={other}"), tmp_path / "data"
    data = prepared(made, directory)
    assert data.tokenizer.decode(data.train.ids) == "abcdefgh" * 20
    assert data.tokenizer.decode(data.validation.ids) == "hgfedcba" * 3
    assert (data.manifest.train.characters, data.manifest.validation.characters) == (160, 24)
    assert prepared(made, directory).reused
    corpus = read_corpus(made.data)
    write_sources(directory, corpus)
    require_same_text(directory, corpus)
    with pytest.raises(DataError, match=r"the validation text that the run was started with, got none.*b\.txt was rem"):
        require_same_text(directory, read_corpus(config(f"data.text={text}").data))
    other.write_text("abc" * 9)
    with pytest.raises(DataError, match=r"the validation text that .* got another one.*b\.txt was changed"):
        require_same_text(directory, read_corpus(made.data))
    assert not prepared(made, directory).reused
    held_out = prepared(config(f"data.text={text}"), directory)
    assert not held_out.reused
    with pytest.raises(DataError, match="expected no validation text, as when it was started, got another one"):
        require_same_text(directory, read_corpus(made.data))
    text.write_text("abcdefgh" * 20 + "!")
    with pytest.raises(DataError, match="expected the text that the run was started with"):
        require_same_text(directory, read_corpus(config(f"data.text={text}").data))


def mixture_of(tmp_path: Path, *overrides: str) -> tuple[Config, Dataset]:
    """Return a mixture of a running text of a, one of b, and documents of c."""
    (tmp_path / "a.txt").write_text("a" * 300)
    (tmp_path / "b.txt").write_text("b" * 40)
    write_records(tmp_path / "c.jsonl", ["c" * 20] * 12)
    texts = [str(tmp_path / name) for name in ("a.txt", "b.txt", "c.jsonl")]
    made = config(
        "data.tokenizer=bytes", f"data.text={json.dumps(texts)}", "data.mixture=[3,1.5,0.5]", "batch_size=64",
        "data.train_fraction=0.75", *overrides,
    )  # fmt: skip
    validate(made)
    return made, prepared(made, tmp_path / "data")


def test_a_mixture_draws_each_sequence_from_a_source_by_its_weight(tmp_path: Path) -> None:
    write_records(tmp_path / "val.jsonl", ["a" * 30])
    _, data = mixture_of(tmp_path, f"data.validation_text={tmp_path / 'val.jsonl'}")
    assert data.mixture is not None
    assert [tuple(found) for found in data.mixture.ranges] == [(0, 300), (300, 340), (340, 580)]
    assert bytes(data.train.ids.astype(np.uint8)) == b"a" * 300 + b"b" * 40 + b"c" * 240
    assert data.train.documents is not None
    assert data.train.documents.tolist() == [0, 300, *range(340, 580, 20)]
    sizes = BatchSizes(64, 8)
    source = TokenBatches(data.train, sizes, 7, mixture=data.mixture)
    ids, targets = np.zeros(64, np.int32), np.zeros(64, np.int32)
    counts = Counter[str]()
    for batch in range(40):
        for micro in range(8):
            source.fill(batch, micro, ids, targets)
            for row in range(8):
                letters = {*ids.reshape(8, 8)[row].tolist(), *targets.reshape(8, 8)[row].tolist()}
                assert len(letters) == 1, "a sequence never crosses from one source into the next"
                counts[chr(letters.pop())] += 1
    total = sum(counts.values())
    for letter, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert abs(counts[letter] - share * total) < 5 * (total * share * (1 - share)) ** 0.5
    other = TokenBatches(data.train, BatchSizes(64, 1), 7, mixture=data.mixture)
    assert [other.start(3, n) for n in range(64)] == [source.start(3, n) for n in range(64)]


def test_the_source_of_a_sequence_is_where_the_draw_lies() -> None:
    """The oracle divides the 2^64 draws among the sources by exact fractions."""
    weights = (0.1, 2.0, 1e-9, 3.0)
    mixture = Mixture.of(weights, (0, 10, 20, 30), 40)
    assert mixture is not None
    exact = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    for batch in range(6):
        for sequence in range(50):
            counter = np.array([0, sequence, batch, 0], np.uint64)
            key = np.array([3, int.from_bytes(b"sources")], np.uint64)
            draw = Fraction(int(np.random.Philox(counter=counter, key=key).random_raw()), 1 << 64)
            expected = next(n for n in range(4) if draw < sum(exact[: n + 1]))
            assert mixture.source(3, batch, sequence) == expected
    assert [tuple(found) for found in mixture.ranges] == [(0, 10), (10, 20), (20, 30), (30, 40)]


def test_each_source_of_a_mixture_holds_out_its_own_share(tmp_path: Path) -> None:
    made, data = mixture_of(tmp_path)
    assert bytes(data.validation.ids.astype(np.uint8)) == b"c" * 60  # the other sources are one document each
    assert data.manifest.train.sources == (0, 300, 340)
    corpus = read_corpus(made.data)
    assert corpus.documents == 14
    require_same_text(tmp_path / "data", corpus)
    swapped = msgspec.structs.replace(made.data, text=made.data.text[::-1])
    with pytest.raises(DataError, match="another one"):
        require_same_text(tmp_path / "data", read_corpus(swapped))


def test_settings_of_a_mixture_are_checked(tmp_path: Path) -> None:
    for overrides, word in (
        (["data.mixture=[1]"], "a weight for each of the 2 entries"),
        (["data.mixture=[1,0]"], "weights above 0"),
        (["data.mixture=[1,-1]"], "weights above 0"),
    ):
        with pytest.raises(ConfigError, match=word):
            validate(config('data.text=["a","b"]', *overrides))
    (tmp_path / "a.txt").write_text("a" * 300)
    (tmp_path / "b.txt").write_text("b" * 8)
    texts = json.dumps([str(tmp_path / name) for name in ("a.txt", "b.txt")])
    with pytest.raises(DataError, match=r"data\.text, entry 2: expected at least 9 training tokens.*got 7"):
        prepared(config("data.tokenizer=bytes", f"data.text={texts}", "data.mixture=[1,1]"), tmp_path / "data")
    plain, mixed = (resolve(config(*found), 2, 65) for found in ((), ("data.mixture=[1,2]", 'data.text=["a","b"]')))
    assert "data.mixture" not in trajectory(plain)
    assert trajectory(mixed)["data.mixture"] == [1.0, 2.0]


def test_a_corpus_of_one_text_has_its_checksum() -> None:
    text = read_text([Path(__file__)])
    assert Corpus((text,)).checksum() == text.checksum()
    assert Corpus((text, text)).checksum() != text.checksum()


def test_the_characters_of_several_texts_are_counted_once() -> None:
    class Counted(StringText):
        reads = 0

        def chunks(self) -> Iterator[str]:
            self.reads += 1
            return super().chunks()

    first, second = Counted("abc"), Counted("cd")
    corpus = Corpus((first, second))
    for _ in range(3):
        assert corpus.text.character_counts[ord("c")] == 2
    assert (first.reads, second.reads) == (1, 1)


def test_another_end_of_text_is_prepared_again(tmp_path: Path) -> None:
    folder, path = tmp_path / "model", write_records(tmp_path / "a.jsonl", DOCUMENTS)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(MADE["qwen"]())
    made = config(f"data.text={path}", "data.tokenizer=pretrained", f"data.tokenizer_path={folder}")
    for token in ("<|im_end|>", "<|endoftext|>"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
        data = prepared(made, tmp_path / "data")
        assert not data.reused
        assert data.tokenizer.end_of_text is not None
        assert data.tokenizer.end_of_text.token == token
        assert {found[-1] for split in documents_of(data) for found in split} == {data.tokenizer.end_of_text.id}
        assert prepared(made, tmp_path / "data").reused


def test_a_stopped_preparation_is_not_continued_with_another_end_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "model", write_records(tmp_path / "a.jsonl", DOCUMENTS)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(MADE["qwen"]())
    made = config(f"data.text={path}", "data.tokenizer=pretrained", f"data.tokenizer_path={folder}")
    monkeypatch.setattr("threadloom.stages.data.encoding.units.BATCH_CHARACTERS", 8)
    monkeypatch.setattr("threadloom.stages.data.encoding.pipeline.COMMIT_CHARACTERS", 8)
    add, batches = SplitFiles.add, list[int]()

    def stopped(self: SplitFiles, encoded: EncodedUnits) -> None:
        add(self, encoded)
        batches.append(len(encoded.ids))
        if len(batches) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(SplitFiles, "add", stopped)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    with pytest.raises(KeyboardInterrupt):
        prepared(made, tmp_path / "data")
    assert json.loads((tmp_path / "data" / ".preparing" / "journal.json").read_text())["batches"] > 0
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    data = prepared(made, tmp_path / "data")
    assert data.tokenizer.end_of_text is not None
    assert {found[-1] for split in documents_of(data) for found in split} == {data.tokenizer.end_of_text.id}
