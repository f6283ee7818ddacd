"""Decisions as pure state machines, without threads and clocks: admission, joins, ordered output, failures, control.

May import: core.
"""

from threadloom.pipeline.policy.admission import (
    Admission as Admission,
    Fifo as Fifo,
    FifoState as FifoState,
    InOrder as InOrder,
    Policy as Policy,
    Ticket as Ticket,
)
from threadloom.pipeline.policy.balancing import (
    BalanceRules as BalanceRules,
    StageLoad as StageLoad,
    WorkerBalancer as WorkerBalancer,
    WorkerMove as WorkerMove,
)
from threadloom.pipeline.policy.control import (
    ACTIVE_STATES as ACTIVE_STATES,
    RunAction as RunAction,
    RunControl as RunControl,
    RunState as RunState,
    WorkerCount as WorkerCount,
)
from threadloom.pipeline.policy.failure import (
    Attempt as Attempt,
    DeadLetter as DeadLetter,
    Decision as Decision,
    Expansion as Expansion,
    FailFast as FailFast,
    OnError as OnError,
    Retry as Retry,
    RetryAfter as RetryAfter,
    SkipFailed as SkipFailed,
)
from threadloom.pipeline.policy.gather import Gather as Gather
from threadloom.pipeline.policy.join import Join as Join
from threadloom.pipeline.policy.lane_order import LaneOrder as LaneOrder
from threadloom.pipeline.policy.on_failure import FailureCuts as FailureCuts, OnFailure as OnFailure
from threadloom.pipeline.policy.ordered import (
    FinishedItem as FinishedItem,
    NumberedAdmission as NumberedAdmission,
    ReorderBuffer as ReorderBuffer,
)
from threadloom.pipeline.policy.priority import Priority as Priority
from threadloom.pipeline.policy.rate import Rate as Rate, TokenBucket as TokenBucket
