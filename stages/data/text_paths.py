"""Names of texts: paths, file URIs, patterns, and a dash for standard input."""

import glob
import urllib.parse
from pathlib import Path

STANDARD_INPUT = "-"
"""The name, as a text, of standard input."""

_URI = "file:///"


def text_path(text: str | Path) -> Path:
    """Return the path of a text: a path as it is, or the path in a file URI, whose bytes need not be UTF-8."""
    if isinstance(text, str) and text.startswith(_URI):
        return Path(urllib.parse.unquote(text[len(_URI) - 1 :], "utf-8", "surrogateescape"))
    return Path(text)


def absolute_text(text: str | Path) -> str:
    """Return the name of a text that is valid in any directory: its absolute path, or a file URI if that is not UTF-8.

    JSON cannot hold a path that is not UTF-8. Standard input keeps its name.
    """
    if text == STANDARD_INPUT:
        return STANDARD_INPUT
    path = text_path(text).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


def is_pattern(path: Path) -> bool:
    """Return True if a path is a pattern such as corpus/**/*.jsonl.gz, and not the name of something that exists."""
    try:
        return glob.has_magic(str(path)) and not path.exists()
    except (OSError, ValueError):  # a parent that may not be searched, a null character: reported when it is read
        return False


def matching_files(pattern: Path) -> list[Path]:
    """Return the files that a pattern names, in sorted order; `**` stands for any number of directories.

    Hidden entries match only a pattern with a dot.
    """
    found = (Path(name) for name in glob.iglob(str(pattern), recursive=True))  # noqa: PTH207 - hides hidden entries
    return sorted(path for path in found if not path.is_dir())
