"""Logging, and worker processes that exchange JSON with their parent. The command line imports it first: it is light.

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

__all__ = [
    "JsonWorkerProcess",
    "LogLevel",
    "UpdateServer",
    "WorkerError",
    "configure",
    "module_command",
    "peak_resident_bytes",
    "redirect_stdout_to_stderr",
    "resident_bytes",
    "serve",
]
