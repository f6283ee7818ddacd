"""Records as documents: JSON Lines, Parquet and Arrow against the libraries that write them; damage and patterns."""

import bz2
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from threadloom.stages.config import InvalidRecords
from threadloom.stages.data.documents import Document
from threadloom.stages.data.sources import json_lines, records, registry
from threadloom.stages.data.sources.field_documents import FieldDocuments
from threadloom.stages.data.sources.json_lines import lines
from threadloom.stages.data.sources.records import RecordError
from threadloom.stages.data.sources.registry import Reading
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.text_record import text_changes, write_sources

SKIP = Reading(invalid=InvalidRecords.SKIP)
TEXTS = ["ein\nGedicht\n", "猫 \U0010ffff \x00 é", "<|endoftext|>", " ", '"quoted" \\ \u2028', "x" * 3000]


def texts_of(text: Text) -> list[str]:
    """Return the documents of a text, those of plain files included."""
    return [part.text if isinstance(part, Document) else "".join(part.chunks) for part in text.parts()]


def json_lines_of(texts: list[str], **others: object) -> bytes:
    return b"".join(json.dumps({"text": text, **others}).encode() + b"\n" for text in texts)


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=70)


def write_feather(path: Path, table: pa.Table) -> None:
    feather.write_feather(table, str(path), chunksize=70)


def write_stream(path: Path, table: pa.Table) -> None:
    """Write a stream, as the library `datasets` does."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_each_line_is_a_document(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    suffix = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2"}[compress]
    path = tmp_path / f"a.jsonl{suffix}"
    content = b"\xef\xbb\xbf" + json_lines_of(TEXTS, score=float("nan"), text2=1).replace(b"\n", b"\r\n") + b"\n \n"
    path.write_bytes(compress(content + json.dumps({"text": "last"}).encode()))
    text = read_text([path])
    assert texts_of(text) == [*TEXTS, "last"]
    assert text.documents == 7
    assert text.read() == "".join(part if part.endswith("\n") else part + "\n" for part in [*TEXTS, "last"])
    assert text.characters == len(text.read())
    assert [part.origin.record for part in text.parts() if isinstance(part, Document)] == [1, 2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", write_parquet), ("a.feather", write_feather), ("a.arrow", write_stream)]
)
def test_each_row_of_a_table_is_a_document(tmp_path: Path, name: str, write: Callable[[Path, pa.Table], None]) -> None:
    texts = [text + str(number) for number in range(50) for text in TEXTS]
    table = pa.table({"id": range(300), "text": texts, "meta": [{"body": text.upper()} for text in texts]})
    write(tmp_path / name, table)
    assert texts_of(read_text([tmp_path / name])) == texts
    nested = read_text([tmp_path / name], reading=Reading(FieldDocuments("meta.body")))
    assert texts_of(nested) == [text.upper() for text in texts]
    other = json_lines_of(texts)
    (tmp_path / "a.jsonl").write_bytes(other)
    assert read_text([tmp_path / "a.jsonl"]).checksum() == read_text([tmp_path / name]).checksum()
    (tmp_path / name).rename(tmp_path / "unnamed")
    if name != "a.arrow":
        assert texts_of(read_text([tmp_path / "unnamed"])) == texts  # by its first bytes


def test_string_types_of_tables(tmp_path: Path) -> None:
    columns = [
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b", "a"], pa.large_string()),
        pa.array(["a", "b", "a"], pa.string_view()),
    ]
    for number, column in enumerate(columns):
        write_feather(tmp_path / f"{number}.feather", pa.table({"text": column}))
        assert texts_of(read_text([tmp_path / f"{number}.feather"])) == ["a", "b", "a"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=12)), st.data())
def test_lines_are_those_of_the_content_in_any_pieces(parts: list[bytes], data: st.DataObject) -> None:
    content = b"\n".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    expected = content.split(b"\n")
    assert list(lines(pieces)) == (expected if expected[-1] else expected[:-1])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.data())
def test_any_split_into_files_gives_equal_documents(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    whole, split = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("split")
    (whole / "a.jsonl").write_bytes(json_lines_of(texts))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=3)))
    for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(texts)], strict=True)):
        if data.draw(st.booleans()):
            (split / f"{number}.ndjson").write_bytes(json_lines_of(texts[a:b]))
        else:
            pq.write_table(pa.table({"text": pa.array(texts[a:b], pa.string())}), split / f"{number}.parquet")
    one, several = read_text([whole]), read_text([split])
    assert texts_of(one) == texts_of(several) == texts
    assert (one.checksum(), one.characters) == (several.checksum(), several.characters)


def test_records_and_plain_files_of_a_directory_are_all_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_bytes(json_lines_of(["one", "two\n"]))
    (tmp_path / "c.md").write_text("more\n")
    text = read_text([tmp_path])
    assert texts_of(text) == ["plain", "one", "two\n", "more\n"]
    assert text.read() == "plain\none\ntwo\nmore\n"
    assert (text.documents, text.characters) == (4, len(text.read()))
    without = read_text([tmp_path / "a.txt", tmp_path / "c.md"])
    assert without.documents is None
    assert without.as_documents().documents == 2
    assert without.as_documents().checksum() != without.checksum()
    assert read_text([tmp_path / "a.txt"], reading=Reading(whole_files=True)).documents == 1


DEEP = b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
BAD = {
    b"not json": r"got 'not json', which is not JSON",
    b'{"text": "cut': r"not JSON \(Unterminated string",
    DEEP: "at most 200 levels, got a deeper one",
    b"[1, 2]": "a JSON object, got a value of type list",
    b'{"body": "x", "id": 1}': r"a field 'text' with the text, got the fields 'body', 'id'\. Hint: set data\.field",
    b"{}": "got no field",
    b'{"text": 3}': "a text in the field 'text', got a value of type int",
    b'{"text": null}': "got null",
    b'{"text": "a\xff"}': "in UTF-8, got byte 0xff at byte 12 of the line",
    b'{"text": "a\\ud800"}': r"lone surrogate U\+D800 at character 2",
    b'{"text": ' + b"9" * 5000 + b"}": "digits",
    b'{"text": "a\0b"}': "not JSON",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_an_invalid_record_is_refused_or_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines_of(["good"]) + b"\n" + line + b"\n" + json_lines_of(["", "also"]))
    with pytest.raises(RecordError, match=BAD[line]) as caught:
        read_text([tmp_path])  # a directory leaves out no file because of a record
    assert caught.value.subject == f"{path}, line 3"
    assert "data.invalid=skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    text = read_text([path], reading=SKIP)
    assert texts_of(text) == ["good", "also"]
    (found,) = text.skipped
    assert (found.path, found.invalid, found.empty, len(found.reasons)) == (path, 1, 1, 1)
    assert found.reasons[0].startswith(f"{path}, line 3: expected ")
    assert write_sources(tmp_path, text).name == "sources.json"
    assert text_changes(tmp_path, text) == "its files have another order"  # none of them differs


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_lines, records, registry):
        monkeypatch.setattr(module, "LONGEST_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines_of(["a", "b" * 990, "c"]) + json_lines_of(["d" * 2000])[:-1])
    text = read_text([path], reading=SKIP)
    assert texts_of(text) == ["a", "c"]
    assert text.skipped[0].reasons == tuple(
        f"{path}, line {number}: expected a line of at most 1,000 bytes, got one of more than 1,000"
        for number in (2, 4)
    )
    pq.write_table(pa.table({"text": ["e" * 1001]}), tmp_path / "a.parquet")
    with pytest.raises(RecordError, match=r"a\.parquet, row 1: expected a text of at most 1,000 characters"):
        read_text([tmp_path / "a.parquet"])


def test_only_skipped_records_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n[]\n" + json_lines_of([""]))
    with pytest.raises(TextError, match=r"2 invalid and 1 empty records left out, such as .*a\.jsonl, line 1: "):
        read_text([path], reading=SKIP)


def test_damaged_tables_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"body": TEXTS}))
    with pytest.raises(TextError, match=r"a column 'text' with the text, got the columns 'body'.*data\.field"):
        read_text([path])
    whole = path.read_bytes()
    for name, damaged in (("a.parquet", whole[: len(whole) // 2]), ("a.feather", whole), ("b.arrow", b"ARROW1xx")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(TextError, match=r"a complete (Parquet|Arrow) file"):
            read_text([tmp_path / name])
    (tmp_path / "good.txt").write_text("text")
    text = read_text([tmp_path])
    assert {found.path.name for found in text.left_out if found.failed} == {"a.parquet", "a.feather", "b.arrow"}
    with pytest.raises(TextError, match="No such file"):
        read_text([tmp_path / "none.parquet"])


def test_rows_that_are_not_text_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    write_feather(path, pa.table({"text": pa.array(["a", None, "b"])}))
    with pytest.raises(RecordError, match=r"a\.feather, row 2: .*got null"):
        read_text([path])
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")]
    )
    write_feather(path, pa.table({"text": broken}))
    with pytest.raises(RecordError, match=r"a\.feather, row 2: expected a text in UTF-8, got byte 0xff"):
        read_text([path])
    assert texts_of(read_text([path], reading=SKIP)) == ["a", "b"]


def test_a_file_that_changed_is_refused_and_one_that_grew_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines_of(["one", "two"]))
    text = read_text([path])
    with path.open("ab") as file:
        file.write(json_lines_of(["three"]) + b"{")
    assert texts_of(text) == ["one", "two"]
    path.write_bytes(json_lines_of(["one", "tw0"]))
    with pytest.raises(TextError, match=r"a\.jsonl: expected the text that it had when it was read first"):
        list(text.chunks())


def test_patterns_name_files(tmp_path: Path) -> None:
    for name in ("b/c/2.jsonl.gz", "a/1.jsonl.gz", "b/c/x.txt", ".hidden/3.jsonl.gz", "run/4.jsonl.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(json_lines_of([name])))
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "[x].txt").write_text("not a pattern")
    text = read_text([tmp_path / "**" / "*.jsonl.gz"], excluded=[tmp_path / "run"])
    assert texts_of(text) == ["a/1.jsonl.gz", "b/c/2.jsonl.gz"]
    assert [found.path.name for found in text.left_out] == ["4.jsonl.gz"]
    assert read_text([tmp_path / "[x].txt"]).read() == "not a pattern"
    with pytest.raises(TextError, match=r"\*\.csv: expected files whose paths match the pattern, got none"):
        read_text([tmp_path / "*.csv"])


def test_pyarrow_is_imported_only_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines_of(["x"]))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    program = (
        "import sys\nfrom threadloom.stages.data import TextError, read_text\n"
        f"read_text([{str(tmp_path / 'a.jsonl')!r}])\nassert 'pyarrow' not in sys.modules\n"
        "sys.modules['pyarrow.parquet'] = None\n"
        f"try:\n    read_text([{str(tmp_path / 'b.parquet')!r}])\nexcept TextError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "b.parquet: expected pyarrow, which reads Parquet and Arrow files, got none installed" in done.stdout
    assert "threadloom[parquet]" in done.stdout
