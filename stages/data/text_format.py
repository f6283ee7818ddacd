"""Recognition of files that are not UTF-8 text, from their first bytes, with the command that converts each.

Signatures are those of the formats' specifications. Encodings with NUL bytes follow from the position of these bytes;
the other encodings are estimated by charset-normalizer, which compares the frequencies of letters.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from threadloom.stages.config import InputError
from threadloom.stages.data.compression import COMPRESSIONS

SAMPLE_BYTES = 4096
"""Number of bytes from which an encoding is estimated, which takes about a millisecond."""

_SIGNATURES: tuple[tuple[int, bytes, str, str | None], ...] = (
    (0, b"%PDF-", "a PDF document", "pdftotext {file} {stem}.txt"),
    (0, b"PK\x03\x04", "a zip archive", "unzip {file} -d {stem}"),
    *(
        (0, inner.magic, f"{inner.name} data inside compressed data", f"{inner.command} -dc {{file}} > {{stem}}")
        for inner in COMPRESSIONS
    ),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {file}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unrar x {file}"),
    (257, b"ustar", "a tar archive", "tar -xf {file}"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office document", "soffice --convert-to txt {file}"),
    (0, b"SQLite format 3\0", "an SQLite database", "sqlite3 {file} .dump > {stem}.txt"),
    (0, b"\x89PNG", "a PNG picture", None),
    (0, b"\xff\xd8\xff", "a JPEG picture", None),
    (0, b"GIF8", "a GIF picture", None),
    (0, b"\x7fELF", "a compiled program", None),
    (0, b"PAR1", "a Parquet file", None),
    (0, b"\x93NUMPY", "a NumPy array", None),
)
"""Offset, bytes, name and command of each format."""

_DOCUMENTS = frozenset((".docx", ".odt", ".epub", ".fb2"))
"""Suffixes of zip archives that pandoc converts to text."""

_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks, in the order in which they must be compared."""

_CANDIDATES = [
    "cp1252", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "tis_620",
    "cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp949",
]  # fmt: skip
"""Encodings without NUL bytes among which charset-normalizer chooses. CP1252 contains
the letters of Latin-1, CP932 those of Shift-JIS."""

_CENTRAL_EUROPEAN = re.compile(rb"[A-Za-z][\xb3\xb9\xbf][A-Za-z]")
"""The letters ł, ą and ż of CP1250 inside a word, which are signs in CP1252."""

_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_LETTERS_IN_WORDS = re.compile(
    rb"(?<=[A-Za-z])[\x80-\xff]{1,2}(?![\x80-\xff])|(?<![\x80-\xff])[\x80-\xff]{1,2}(?=[A-Za-z])"
)
"""One or two bytes next to a letter of ASCII: accented letters of the Latin script, in which words mix the two."""

_TEXT_CONTROLS = frozenset(b"\t\n\r\f\b\x1b")


class TextError(InputError):
    """A text that cannot be read; `subject` is the file or directory."""


@dataclass(frozen=True)
class Format:
    """The supposed format of a file that is not UTF-8 text."""

    name: str
    remedy: str


def not_text(file: Path, offset: int, byte: int, head: bytes, around: bytes) -> TextError:
    """Return the error for a file that is not UTF-8 text.

    `byte` at `offset` of the decompressed content is the first one that is not text; `head` is the beginning of the
    content and `around` a part that contains the byte.
    """
    found = recognise(file, head, around)
    return TextError(
        str(file),
        expected="UTF-8 text",
        got=f"byte 0x{byte:02x} at offset {offset:,}",
        cause=f"the file looks like {found.name}",
        hint=found.remedy,
    )


def signature(file: Path, head: bytes) -> Format | None:
    """Return the format whose signature a file begins with; None if there is none."""
    for offset, magic, name, command in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            if magic.startswith(b"PK") and file.suffix.lower() in _DOCUMENTS:
                name, command = "a document in a zip archive", "pandoc -t plain {file} -o {stem}.txt"
            if command is None:
                return Format(name, "pass files with text")
            quoted = command.format(file=shlex.quote(file.name), stem=shlex.quote(file.stem))
            return Format(name, f"extract its text and pass that: {quoted}")
    return None


def recognise(file: Path, head: bytes, around: bytes) -> Format:
    """Return the most likely format of a file that is not UTF-8 text; see `not_text`."""
    found = signature(file, head)
    if found:
        return found
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None) or _wide_encoding(head)
    if encoding:
        return _text_in(file, encoding)
    controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in around[:SAMPLE_BYTES])
    zeros = around[:SAMPLE_BYTES].count(0)
    if zeros and controls == zeros and _invalid_bytes(around) == 0:
        remedy = f"remove them: tr -d '\\000' < {shlex.quote(file.name)} > {_converted(file)}"
        return Format("UTF-8 text with NUL bytes", remedy)
    if zeros or controls > len(around[:SAMPLE_BYTES]) // 50:
        return Format("a binary file", "pass files with text")
    if _mostly_utf8(around):
        remedy = f"remove them: iconv -c -f UTF-8 -t UTF-8 {shlex.quote(file.name)} > {_converted(file)}"
        return Format("UTF-8 text with damaged bytes", remedy)
    encoding = _narrow_encoding(around[:SAMPLE_BYTES])
    if encoding:
        return _text_in(file, encoding)
    hint = "pass files with text, or convert its encoding with `iconv -f ENCODING -t UTF-8`"
    return Format("a binary file, or text in an unknown encoding", hint)


def _text_in(file: Path, encoding: str) -> Format:
    remedy = f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(file.name)} > {_converted(file)}"
    if encoding == "CP1252":
        remedy += " (or -f CP1250 if accented letters come out wrong)"
    return Format(f"text in {encoding}", remedy)


def _converted(file: Path) -> str:
    return shlex.quote(f"{file.stem}.utf8{file.suffix}")


def _wide_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 with its byte order for text without a mark, whose NUL bytes have the same positions."""
    sample = head[: SAMPLE_BYTES - SAMPLE_BYTES % 4]
    sample = sample[: len(sample) - len(sample) % 4] or sample[: len(sample) - len(sample) % 2]
    zeros = [sample[start::4].count(0) for start in range(4)]
    quarter = len(sample) // 4
    if not quarter or not sum(zeros):
        return None
    if zeros[2] == zeros[3] == quarter and not zeros[0]:
        return "UTF-32LE"
    if zeros[0] == zeros[1] == quarter and not zeros[3]:
        return "UTF-32BE"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    for encoding, expected, other in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
        # Line ends and spaces alone make one NUL byte in some 64 characters, in any script.
        if not other and expected * 64 >= len(sample) // 2 and _is_printable(sample, encoding):
            return encoding
    return None


def _is_printable(sample: bytes, encoding: str) -> bool:
    """Return True if nearly all characters of a sample in an encoding are letters, digits, signs or white space."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:  # also a surrogate pair at the end, in one sample of a thousand
        return False
    return sum(character.isprintable() or character.isspace() for character in text) * 50 >= len(text) * 49


def _invalid_bytes(sample: bytes) -> int:
    """Return the number of bytes that are not part of valid UTF-8, without a character that the end cuts."""
    kept = sample.decode("utf-8", "ignore")
    return max(0, len(sample) - len(kept.encode()) - 3)


def _mostly_utf8(sample: bytes) -> bool:
    """Return True if valid characters of several bytes outnumber the invalid bytes."""
    kept = sample.decode("utf-8", "ignore")
    valid = sum(ord(character) > 127 for character in kept)
    return valid > 4 * (len(sample) - len(kept.encode()))


def _narrow_encoding(sample: bytes) -> str | None:
    """Return the name, for iconv, of the most likely encoding without NUL bytes; None if no candidate fits."""
    if _CENTRAL_EUROPEAN.search(sample):
        return "CP1250"
    if 2 * len(_LETTERS_IN_WORDS.findall(sample)) > len(_HIGH_BYTES.findall(sample)):
        return "CP1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    if best is None:
        return None
    return best.encoding.upper().replace("_", "-")
