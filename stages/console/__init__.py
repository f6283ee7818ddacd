"""Standard streams, logging, signals that stop a command, and worker processes that exchange JSON with their parent.

The command line imports it first: it is light.

May import: nothing.
"""

from threadloom.stages.console.json_worker import (
    JsonWorkerProcess,
    UpdateServer,
    WorkerError,
    module_command,
    peak_resident_bytes,
    redirect_stdout_to_stderr,
    resident_bytes,
    serve,
)
from threadloom.stages.console.log import LogLevel, configure
from threadloom.stages.console.stop_signals import Stopped, StopSignals
from threadloom.stages.console.streams import discard_unwritable, prepare_streams, write_output

__all__ = [
    "JsonWorkerProcess",
    "LogLevel",
    "StopSignals",
    "Stopped",
    "UpdateServer",
    "WorkerError",
    "configure",
    "discard_unwritable",
    "module_command",
    "peak_resident_bytes",
    "prepare_streams",
    "redirect_stdout_to_stderr",
    "resident_bytes",
    "serve",
    "write_output",
]
