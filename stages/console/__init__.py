"""Terminal output and worker processes that speak JSON. Light: the command line imports it before anything else.

May import: nothing else of stages.
"""

from threadloom.stages.console.json_worker import Asked, WorkerError, answers_only, command_of, resident, serve
from threadloom.stages.console.log import LogLevel, configure

__all__ = [
    "Asked",
    "LogLevel",
    "WorkerError",
    "answers_only",
    "command_of",
    "configure",
    "resident",
    "serve",
]
