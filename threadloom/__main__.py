"""The command line, as the command `threadloom` and as `python -m threadloom`.

A stop signal ends the process with one line and without a traceback at any time: while the command line is being
loaded, and after it has ended. Python raises KeyboardInterrupt for Ctrl-C until the handlers are set, so this module
and `threadloom` import at first only modules that the interpreter has loaded at its start.
"""

import os
import sys

TYPE_CHECKING = False  # that of `typing`, which takes milliseconds to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_INTERRUPT = 2
"""The number of SIGINT on every system."""


def _end(number: int, frame: "FrameType | None" = None) -> "NoReturn":
    """End the process, as a signal handler. Nothing needs to be cleaned up before or after a command."""
    name = "Ctrl-C"
    if number != _INTERRUPT:
        import signal

        name = signal.Signals(number).name
    try:  # noqa: SIM105 - contextlib is not loaded
        os.write(2, f"stopped by {name}\n".encode())
    except OSError:
        pass
    os._exit(128 + number)


def _handle_stop_signals() -> None:
    import signal

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a checkpoint, and there is none to write yet


def run() -> "NoReturn":
    """Run the command line and exit with its status."""
    try:
        _handle_stop_signals()
        from threadloom.stages.cli import main

        sys.exit(main(prog_name="threadloom"))
    except KeyboardInterrupt:
        _end(_INTERRUPT)


if __name__ == "__main__":
    run()
