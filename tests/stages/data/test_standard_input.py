"""Standard input as a text: spooled near the run, recognised by its content, moved into the run directory."""

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from threadloom.stages.config import DataConfig
from threadloom.stages.data.corpus import read_corpus
from threadloom.stages.data.standard_input import keep_standard_input, standard_input
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_paths import absolute_text
from threadloom.stages.data.text_reading import read_text

RECORDS = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two"))


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """Put a content on standard input; None: a terminal."""
    stream = SimpleNamespace(buffer=io.BytesIO(content or b""), isatty=lambda: content is None)
    monkeypatch.setattr("sys.stdin", stream)


def parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "suffix", "documents"),
    [
        (b"plain\ntext", ".txt", None),
        (b"[1, 2]\n", ".txt", None),
        (b'{"a": cut', ".txt", None),
        (b"\n" + RECORDS, ".jsonl", 2),
        (gzip.compress(RECORDS, mtime=0), ".jsonl", 2),
        (gzip.compress(b"plain", mtime=0), ".txt", None),
        (parquet(), ".parquet", 2),
    ],
)
def test_a_content_is_recognised_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, suffix: str, documents: int | None
) -> None:
    pipe(monkeypatch, content)
    kept, data = tmp_path / "run" / "data", DataConfig(text=("-",))
    with standard_input(data.text, tmp_path / "run", None) as file:
        corpus = read_corpus(data, standard_input=file)
        kept.mkdir(parents=True)  # as the claim of a run does
        corpus = keep_standard_input(corpus, file, kept)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert corpus.documents == documents
        before = corpus.text.read()
    assert [path.name for path in kept.iterdir()] == [f"standard-input{suffix}"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert corpus.text.read() == before
    pipe(monkeypatch, b"not read again")
    with standard_input(data.text, tmp_path / "run", kept) as file:
        again = keep_standard_input(read_corpus(data, standard_input=file), file, kept)
    assert again.checksum() == corpus.checksum()


def test_without_a_pipe_or_its_file_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, None)
    with pytest.raises(TextError, match="expected a text on standard input, got a terminal"):
        with standard_input(("-",), tmp_path / "run", None):
            pass
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TextError, match="got none"):
        with standard_input(("-",), tmp_path / "run", None):
            pass
    with pytest.raises(TextError, match="the standard input that the run was started with, got no such file"):
        with standard_input(("-",), tmp_path / "run", tmp_path):
            pass
    with pytest.raises(TextError, match="which is read as the --text of `threadloom train`"):
        read_text(["-"])
    assert absolute_text("-") == "-"
    with standard_input(("a.txt",), tmp_path, None) as file:
        assert file is None
    assert list(tmp_path.iterdir()) == []
