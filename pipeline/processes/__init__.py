"""Stages whose workers are processes: the worker thread's side, the process's side, and the messages between them.

May import: core, run.
"""

from threadloom.pipeline.processes.errors import ProcessError, ProcessTraceback, WorkerDied, WorkerTimeout
from threadloom.pipeline.processes.process_stage import OnProcesses, on_processes
from threadloom.pipeline.processes.process_worker import ProcessWorker

__all__ = [
    "OnProcesses",
    "ProcessError",
    "ProcessTraceback",
    "ProcessWorker",
    "WorkerDied",
    "WorkerTimeout",
    "on_processes",
]
