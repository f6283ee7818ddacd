"""Standard streams that are open, and whose output never fails on a character.

The command line prepares them before it prints anything: `prepare_streams`. Text for standard output is written by
`write_output`, and not by `click.echo`, which writes UTF-8 to a console whose encoding is ASCII.
"""

import contextlib
import io
import os
import sys
from typing import TextIO


def prepare_streams() -> None:
    """Replace characters that the console lacks, and open standard streams that are closed on the null device.

    A descriptor that was closed by the caller (`2>&-`) would otherwise be that of the next file that is opened, and
    receive the messages of libraries. On standard error Python escapes characters that the console lacks.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `number`
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, or a process without a console
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115, open until exit
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def write_output(text: str = "", end: str = "\n") -> None:
    """Write text to standard output, at once. Raises OSError, such as BrokenPipeError.

    On a terminal, control characters are escaped: a model of bytes may generate any of them. A file or pipe gets the
    text as it is.
    """
    try:
        sys.stdout.write((escape_controls(text) if sys.stdout.isatty() else text) + end)
        sys.stdout.flush()
    except OSError as error:  # it names no file
        raise OSError(error.errno, error.strerror, "standard output") from error


def escape_controls(text: str) -> str:
    """Return a text in which every control character but newline and tab is visible.

    Those of ASCII are in caret notation, as by ``cat -v`` (``^[`` is ESC), the others as by ``less`` (``<U+009B>``).
    """
    return text.translate(_VISIBLE)


_VISIBLE = {
    code: f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\n\t"
}


def discard_unwritable() -> None:
    """Send output that cannot be written, to a full disk or a closed pipe, to the null device.

    Python flushes the standard streams once more at exit, and would report the same error with another exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _redirect(stream)


def _redirect(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, or a closed one
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
