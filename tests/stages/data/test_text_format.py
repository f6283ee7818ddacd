"""Compressed files are read; other formats are recognised and the right command is named."""

import bz2
import gzip
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from threadloom.stages.data.text_decoding import CHUNK_BYTES, text_chunks
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text

WESTERN = "Die Größe des Hauses übertrifft alle Erwartungen; schöne Äpfel, Öl und ein Café.\n" * 20
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.\n" * 20
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 20
POLISH = "Wszyscy ludzie rodzą się wolni i równi, każdy był z dala od miłości, małżeństwa i książki.\n" * 20


def zstd(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed: bytes = importlib.import_module(name).compress(data)
    return compressed


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_compressed_files_are_read(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """The name does not matter; a file may have several members, as `cat a.gz b.gz` and parallel compressors write."""
    file = tmp_path / "book"
    file.write_bytes(compress(WESTERN.encode()) + compress(b"second"))
    assert read_text([file]).read() == WESTERN + "second"
    (tmp_path / "book").rename(tmp_path / "book.txt.gz")
    assert read_text([tmp_path]).read() == WESTERN + "second"
    damaged = compress(WESTERN.encode())[:-12]
    (tmp_path / "cut.txt.gz").write_bytes(damaged)
    with pytest.raises(TextError, match=r"expected a complete .* file, got .*\(the file is damaged or truncated\)"):
        read_text([tmp_path / "cut.txt.gz"])


def test_zstd_without_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zst").write_bytes(zstd(b"text"))
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TextError, match=r"none installed. Hint: .*zstd -d.*threadloom\[zstd\]"):
        read_text([tmp_path / "a.zst"])


@pytest.mark.parametrize("content", ["aé€😀" * 400_000, "\r\n" * 700_000 + "é"])
def test_chunks_do_not_change_the_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_bytes(content.encode())
    chunks = list(text_chunks(tmp_path / "a.txt"))
    assert len(chunks) > 1
    assert "".join(chunks) == content


def test_a_decompression_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    """A thousand chunks in a file of about 1 MB: at most two chunks are decompressed."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b"a" * CHUNK_BYTES
    with (tmp_path / "bomb.gz").open("wb") as file:
        for _ in range(100):
            file.write(squeezer.compress(block))
        file.write(squeezer.flush())
    with pytest.raises(TextError, match=r"at most 1,500,000 characters"):
        read_text([tmp_path], limit=1_500_000)


@pytest.mark.parametrize(
    ("content", "cause", "remedy"),
    [
        (WESTERN.encode("utf-16"), "text in UTF-16", "iconv -f UTF-16 -t UTF-8 x.txt > x.utf8.txt"),
        (b"\xfe\xff" + WESTERN.encode("utf-16-be"), "text in UTF-16", "iconv -f UTF-16 -t"),
        (WESTERN.encode("utf-16-le"), "text in UTF-16LE", "iconv -f UTF-16LE -t"),
        (JAPANESE.encode("utf-16-be"), "text in UTF-16BE", "iconv -f UTF-16BE -t"),
        (RUSSIAN.encode("utf-16-le"), "text in UTF-16LE", "iconv -f UTF-16LE -t"),
        (WESTERN.encode("utf-32"), "text in UTF-32", "iconv -f UTF-32 -t"),
        (WESTERN.encode("utf-32-le"), "text in UTF-32LE", "iconv -f UTF-32LE -t"),
        (WESTERN.encode("utf-32-be"), "text in UTF-32BE", "iconv -f UTF-32BE -t"),
        (WESTERN.encode("latin-1"), "text in CP1252", "iconv -f CP1252 -t"),
        ("caf\u00e9 1\n".encode("latin-1"), "text in CP1252", "iconv -f CP1252 -t"),
        ("\u201cquoted\u201d \u2013 caf\u00e9\n".encode("cp1252") * 9, "text in CP1252", "iconv -f CP1252 -t"),
        (b"plain text\n" * 300_000 + WESTERN.encode("latin-1"), "text in CP1252", "iconv -f CP1252 -t"),
        (POLISH.encode("cp1250"), "text in CP1250", "iconv -f CP1250 -t"),
        (RUSSIAN.encode("cp1251"), "text in CP1251", "iconv -f CP1251 -t"),
        (RUSSIAN.encode("koi8-r"), "text in KOI8-R", "iconv -f KOI8-R -t"),
        (JAPANESE.encode("shift-jis"), "text in CP932", "iconv -f CP932 -t"),
        (JAPANESE.encode("euc-jp"), "text in EUC-JP", "iconv -f EUC-JP -t"),
        (RUSSIAN.encode() + b"\xff" + RUSSIAN.encode(), "UTF-8 text with damaged bytes", "iconv -c -f UTF-8"),
        (WESTERN.encode() + b"\0\0\0", "UTF-8 text with NUL bytes", "tr -d '\\\\000' < x.txt > x.utf8.txt"),
        (b"\x7fELF\2\1\1\0" + bytes(range(256)), "a compiled program", "pass files with text"),
        (bytes(range(256)) * 20, "a binary file", "pass files with text"),
        (b"PK\x03\x04\x14\0" + b"x" * 99, "a zip archive", "unzip x.txt"),
        (b"%PDF-1.7\n plain ascii", "a PDF document", "pdftotext x.txt x.txt"),
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "gzip data inside", "gzip -dc x.txt"),
    ],
)
def test_other_formats_are_recognised(tmp_path: Path, content: bytes, cause: str, remedy: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(TextError) as caught:
        read_text([tmp_path / "x.txt"])
    message = str(caught.value)
    assert cause in message
    assert remedy.replace("\\\\", "\\") in message


def test_a_document_and_a_name_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "my book.docx").write_bytes(b"PK\x03\x04\x14\0" + b"x" * 99)
    with pytest.raises(TextError, match=r"pandoc -t plain 'my book.docx' -o 'my book'.txt"):
        read_text([tmp_path / "my book.docx"])


def test_a_character_cut_at_the_end_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("text €".encode()[:-1])
    with pytest.raises(TextError, match="byte 0xe2 at offset 5"):
        read_text([tmp_path / "x.txt"])
