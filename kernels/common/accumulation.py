"""Turns: micro-batches that add to the gradients of one arena at the same time, each a part behind the one before.

The backward pass goes through the model part by part: first the rows of the embedding, `HEAD_SLICE` at a time (the last
LayerNorm belongs to the last of them), then, from the last block to the first, its MLP and its attention. A micro-batch
adds to the gradients of a part once the micro-batch before it has, so the sum of every tensor has one order of
additions however many threads there are, and two threads that work on neighbours are one part apart. Products that
write no gradient do not wait.

A thread waits inside of a kernel, holding no GIL, asleep most of the time. It cannot wait for ever: the micro-batch
before it was begun before it, and raises the count that is waited for, or whoever stops the run sets `stop`.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from threadloom.kernels.compiling import JIT_ENABLED, jit_strict_fp

Counts = NDArray[np.int64]
"""Counts of finished parts, ever growing: of all batches together."""

HEAD_SLICE = 4096
"""Rows of the embedding in a part: whole blocks of the matrix product, some milliseconds each."""
_PAUSE = 50  # microseconds; a part takes from tens of microseconds to tens of milliseconds
_WORD = ir.IntType(64)
_ALWAYS = np.iinfo(np.int64).max


class AccumulationTicket(NamedTuple):
    """Behind whom a micro-batch adds its gradients; each array has one element."""

    predecessor_count: Counts  # the parts that the micro-batch before it has finished
    done_count: Counts  # the parts that this one has finished: written here alone
    stop: Counts  # not 0: wait no longer, what is computed is thrown away
    base: int  # what `predecessor_count` and `done_count` counted when the batch began


def single_writer() -> AccumulationTicket:
    """Return the turn of somebody who adds alone."""
    return AccumulationTicket(np.full(1, _ALWAYS, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64), 0)


def model_parts(vocabulary: int, layers: int) -> int:
    """Return how many parts a model has."""
    return -(-vocabulary // HEAD_SLICE) + 2 * layers


@intrinsic
def _load(typing_context: Any, address: types.Integer) -> Any:
    """Read a count, and see all that was written before it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], _WORD.as_pointer()), "acquire", 8)

    return types.int64(address), generate


@intrinsic
def _store(typing_context: Any, address: types.Integer, value: types.Integer) -> Any:
    """Write a count after all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        builder.store_atomic(arguments[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(address, types.int64), generate


@intrinsic
def _sleep(typing_context: Any) -> Any:
    """Leave the core to others for a moment (POSIX usleep)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number]), "usleep")
        builder.call(function, [ir.Constant(number, _PAUSE)])
        return context.get_dummy_value()

    return types.void(), generate


if JIT_ENABLED:

    @jit_strict_fp
    def wait_for_predecessor(ticket: AccumulationTicket, part: int) -> None:
        """Return once the gradients of `part` may be added to."""
        predecessor_count, stop = ticket.predecessor_count.ctypes.data, ticket.stop.ctypes.data
        while _load(predecessor_count) <= ticket.base + part and _load(stop) == 0:
            _sleep()

    @jit_strict_fp
    def mark_part_done(ticket: AccumulationTicket, part: int) -> None:
        """Say that this micro-batch has added to the gradients of `part`."""
        _store(ticket.done_count.ctypes.data, ticket.base + part + 1)

else:

    def wait_for_predecessor(ticket: AccumulationTicket, part: int) -> None:
        """Return once the gradients of `part` may be added to."""
        while ticket.predecessor_count[0] <= ticket.base + part and ticket.stop[0] == 0:
            time.sleep(_PAUSE * 1e-6)

    def mark_part_done(ticket: AccumulationTicket, part: int) -> None:
        """Say that this micro-batch has added to the gradients of `part`."""
        ticket.done_count[0] = ticket.base + part + 1
