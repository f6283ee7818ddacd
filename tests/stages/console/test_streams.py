"""Standard streams: characters that a console lacks, closed descriptors, output that cannot be written."""

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner

from threadloom.stages.cli import main
from threadloom.stages.console.streams import discard_unwritable, prepare_streams, write_output
from threadloom.stages.tools.common import report_console, text_argument


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"? ? ? ?\n"), ("latin-1", b"\xe9 ? ? ?\n"), ("cp1252", b"\xe9 ? ? ?\n"),
     ("utf-8", b"\xc3\xa9 \xcf\x84 \xe2\x98\x83 ?\n")],
)  # fmt: skip
def test_a_character_that_the_console_lacks_is_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    prepare_streams()
    write_output("é τ ☃ \udcff")
    assert raw.getvalue() == expected


def test_the_command_line_prepares_its_streams() -> None:
    """The report has a table with the multiplication sign, which rich writes to standard output itself."""
    found = CliRunner(charset="ascii").invoke(main, ["doctor", "--no-measure"])
    assert found.exception is None
    assert "?" in found.stdout
    assert CliRunner(charset="ascii").invoke(main, ["--help"]).exit_code == 0


def test_arguments_that_the_locale_could_not_decode_are_read_as_utf8() -> None:
    assert text_argument("é ☃") == "é ☃"
    assert text_argument(os.fsdecode(b"a\xff")) == "a\ufffd"
    undecoded = "é".encode().decode("ascii", "surrogateescape")  # as in a locale of ASCII
    assert text_argument(undecoded) == "é"


def python(script: str, redirections: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the shell's redirections."""
    call = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", script]
    return subprocess.run(call, capture_output=True, text=True, timeout=30, check=False)


def test_closed_streams_are_opened_before_a_file_gets_their_descriptor(tmp_path: Path) -> None:
    script = f"""
import sys
import unicodedata
from threadloom.stages.console.streams import discard_unwritable, prepare_streams, write_output
prepare_streams()
with open({str(tmp_path / "file")!r}, "w") as file:
    write_output("to nobody")
    print("to nobody", file=sys.stderr)
    file.write(f"{{file.fileno() > 2}} {{sys.stdin.read()!r}}")
discard_unwritable()
"""
    assert python(script, "<&- >&- 2>&-").returncode == 0
    assert (tmp_path / "file").read_text() == "True ''"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_to_a_full_disk_is_one_error_and_no_second_one_at_exit() -> None:
    script = """
import sys
import unicodedata
from threadloom.stages.console.streams import discard_unwritable, write_output
try:
    write_output("too much")
except OSError as error:
    print(error, file=sys.stderr)
discard_unwritable()
"""
    done = python(script, ">/dev/full")
    assert (done.returncode, done.stderr) == (0, "[Errno 28] No space left on device: 'standard output'\n")


def test_output_that_can_be_written_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    sys.stdout.write("kept")
    discard_unwritable()
    assert raw.getvalue() == b"kept"


@pytest.mark.parametrize(("columns", "terminal", "width"), [(20, True, 80), (200, True, 200), (20, False, 100)])
def test_a_report_keeps_its_columns_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, terminal: bool, width: int
) -> None:
    class Console(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stdout", Console())
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    assert report_console(least=80, in_files=100).width == width


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_visible_on_a_terminal_and_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    every = "".join(map(chr, range(0x100)))
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stdout", stream)
        write_output(every, end="")
        if not stream.isatty():
            assert stream.getvalue() == every
            continue
        shown = stream.getvalue()
        assert [c for c in shown if unicodedata.category(c) == "Cc"] == ["\t", "\n"]
        assert shown.startswith("^@^A^B^C^D^E^F^G^H\t\n^K^L^M^N^O^P^Q^R^S^T^U^V^W^X^Y^Z^[^\\^]^^^_ !")
        assert "~^?<U+0080>" in shown and "<U+009F>\xa0" in shown
