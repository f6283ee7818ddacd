"""Stages whose workers are processes: the worker thread's side, the process's side, and the messages between them.

May import: core, run.
"""

from threadloom.pipeline.processes.errors import (
    ProcessError as ProcessError,
    ProcessTraceback as ProcessTraceback,
    WorkerDied as WorkerDied,
    WorkerTimeout as WorkerTimeout,
)
from threadloom.pipeline.processes.process_stage import OnProcesses as OnProcesses, on_processes as on_processes
from threadloom.pipeline.processes.process_worker import ProcessWorker as ProcessWorker
