"""Running a graph: channels, workers, sink iteration, deadlock and stall detection, start and shutdown of threads.

May import: core, policy, observe.
"""

from threadloom.pipeline.run.async_run import AsyncRun as AsyncRun
from threadloom.pipeline.run.channel import Channel as Channel
from threadloom.pipeline.run.commands import Abortable as Abortable
from threadloom.pipeline.run.engine import Run as Run
from threadloom.pipeline.run.settings import RunSettings as RunSettings
from threadloom.pipeline.run.sink_iterator import SinkIterator as SinkIterator
from threadloom.pipeline.run.thread_group import stack_of as stack_of
from threadloom.pipeline.run.watchdog import OnStall as OnStall, StallReport as StallReport, Watchdog as Watchdog
from threadloom.pipeline.run.worker_control import Controller as Controller, WorkerChange as WorkerChange
from threadloom.pipeline.run.worker_state import PerWorker as PerWorker, per_worker as per_worker
