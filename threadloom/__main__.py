"""The command line, as the command `threadloom` and as `python -m threadloom`.

Before the command line is loaded, and after it has ended, a stop signal ends the process without a traceback.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn


def _end(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def run() -> NoReturn:
    """Run the command line and exit with its status."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a checkpoint, and there is none to write yet

    from threadloom.stages.cli import main

    sys.exit(main(prog_name="threadloom"))


if __name__ == "__main__":
    run()
