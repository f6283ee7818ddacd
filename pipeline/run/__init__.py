"""The threads of a run: channels, workers, delivery, deadlock detection, watchdog, engine.

May import: core, policy, observe.
"""

from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.engine import Abortable, Run
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
]
