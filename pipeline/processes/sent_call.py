"""A call that was sent to a process ahead of its turn, together with others, and its reply.

A process works on the calls in the order in which they were sent, and replies to each. The calls of a chunk therefore
cost one message to the process, and no wait for the parent between two of them.

Ownership: a `SentCall` belongs to the worker thread of its process.
"""

from dataclasses import dataclass, field
from typing import Any

from threadloom.pipeline.core import PipelineError, SharedSlot
from threadloom.pipeline.processes.child_process import ChildProcess
from threadloom.pipeline.processes.connection import MessageKind, Payload
from threadloom.pipeline.processes.pickling import MessagePickler


@dataclass
class Reply:
    """The reply to a call."""

    kind: MessageKind
    payload: Payload
    pickler: MessagePickler
    """The pickler of the process that replied."""
    pid: int
    lent: list[SharedSlot]
    """The slots that the process requested for the call."""


@dataclass
class SentCall:
    """A call that was sent ahead."""

    item: Any
    child: ChildProcess | None = None
    """The process that it was sent to."""
    reply: Reply | PipelineError | None = None
    """The reply, or the end of the process in this call; None until it is received."""
    lent: list[SharedSlot] = field(default_factory=list)
    lost: bool = False
    """True if the process ended before it began this call, so that it has to be sent again."""
