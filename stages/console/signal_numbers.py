"""The signals that commands react to, as far as the system has them. This module imports the standard library only."""

import signal


def _numbers(*names: str) -> tuple[int, ...]:
    return tuple(int(getattr(signal, name)) for name in names if hasattr(signal, name))


STOP_SIGNALS = _numbers("SIGINT", "SIGTERM", "SIGHUP")
"""The numbers of the signals that stop a command."""
CHECKPOINT_SIGNALS = _numbers("SIGUSR1")
"""The number of the signal that asks for a checkpoint; empty if the system has none."""
MAY_STAY_IGNORED = _numbers("SIGINT", "SIGHUP")
"""Signals that stay ignored if they were ignored at the start."""
