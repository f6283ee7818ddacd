"""Stages whose workers are processes.

May import: core, run.
"""

from threadloom.pipeline.processes.processes import (
    OnProcesses,
    ProcessError,
    ProcessTraceback,
    ProcessWorker,
    WorkerDied,
    WorkerTimeout,
    on_processes,
)

__all__ = [
    "OnProcesses",
    "ProcessError",
    "ProcessTraceback",
    "ProcessWorker",
    "WorkerDied",
    "WorkerTimeout",
    "on_processes",
]
