"""Decisions as pure state machines, without threads and clocks: admission, joins, ordered output, failures, control.

May import: core.
"""

from threadloom.pipeline.policy.admission import Admission, Fifo, FifoState, Gather, InOrder, Policy, Ticket
from threadloom.pipeline.policy.control import ACTIVE_STATES, RunAction, RunControl, RunState, WorkerCount
from threadloom.pipeline.policy.failure import (
    Attempt,
    DeadLetter,
    Decision,
    FailFast,
    OnError,
    Retry,
    RetryAfter,
    SkipFailed,
)
from threadloom.pipeline.policy.join import Join
from threadloom.pipeline.policy.lane_order import LaneOrder
from threadloom.pipeline.policy.ordered import FinishedItem, NumberedAdmission, ReorderBuffer

__all__ = [
    "ACTIVE_STATES",
    "Admission",
    "Attempt",
    "DeadLetter",
    "Decision",
    "FailFast",
    "Fifo",
    "FifoState",
    "FinishedItem",
    "Gather",
    "InOrder",
    "Join",
    "LaneOrder",
    "NumberedAdmission",
    "OnError",
    "Policy",
    "ReorderBuffer",
    "Retry",
    "RetryAfter",
    "RunAction",
    "RunControl",
    "RunState",
    "SkipFailed",
    "Ticket",
    "WorkerCount",
]
