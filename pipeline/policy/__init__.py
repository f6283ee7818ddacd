"""Decisions, apart from threads and clocks: admission order, joins, ordered output, failures, worker counts.

May import: core.
"""

from threadloom.pipeline.policy.admission import Admission, Fifo, FifoState, Gather, InOrder, Policy, Ticket
from threadloom.pipeline.policy.control import LIVE, Action, Control, Crew, State
from threadloom.pipeline.policy.failure import Again, Attempt, DeadLetter, FailFast, OnError, Retry, SkipFailed, Verdict
from threadloom.pipeline.policy.join import Join
from threadloom.pipeline.policy.lane_order import LaneOrder
from threadloom.pipeline.policy.ordered import Finished, Numbered, Turns

__all__ = [
    "LIVE",
    "Action",
    "Admission",
    "Again",
    "Attempt",
    "Control",
    "Crew",
    "DeadLetter",
    "FailFast",
    "Fifo",
    "FifoState",
    "Finished",
    "Gather",
    "InOrder",
    "Join",
    "LaneOrder",
    "Numbered",
    "OnError",
    "Policy",
    "Retry",
    "SkipFailed",
    "State",
    "Ticket",
    "Turns",
    "Verdict",
]
