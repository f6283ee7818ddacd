"""Train a byte-pair tokenizer. Reads lines of JSON (limit, chunks of the text, null); replies with tokenizer.json.

The process exits when its parent does, which closes its standard input.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from threadloom.stages.console import redirect_stdout_to_stderr
from threadloom.stages.data import train_byte_pairs


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through the buffered reader, whose lock the interpreter needs at exit
    os._exit(1)


def _chunks() -> Iterator[str]:
    """Yield the chunks up to the null; from then on the end of the input ends the process."""
    for line in sys.stdin:
        chunk = json.loads(line)
        if chunk is None:
            threading.Thread(target=_exit_with_parent, daemon=True).start()
            return
        yield chunk
    os._exit(1)


def _be_ended_first() -> None:
    """Ask Linux to end this process, whose parent reports it, before others when the memory is full."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    _be_ended_first()
    replies = redirect_stdout_to_stderr()
    replies.write(json.dumps(train_byte_pairs(_chunks(), json.loads(sys.stdin.readline()))) + "\n")
    replies.flush()
    os._exit(0)  # the thread still reads from the standard input
