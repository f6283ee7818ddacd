"""Running a graph: channels, workers, sink iteration, deadlock and stall detection, start and shutdown of threads.

May import: core, policy, observe.
"""

from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.engine import Abortable, Run
from threadloom.pipeline.run.thread_group import stack_of
from threadloom.pipeline.run.watchdog import OnStall, StallReport, Watchdog
from threadloom.pipeline.run.worker_state import PerWorker, per_worker

__all__ = [
    "Abortable",
    "Channel",
    "OnStall",
    "PerWorker",
    "Run",
    "StallReport",
    "Watchdog",
    "per_worker",
    "stack_of",
]
