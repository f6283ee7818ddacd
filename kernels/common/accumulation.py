"""Ordered accumulation: several threads add the gradients of micro-batches to one arena, in a fixed order per tensor.

The backward pass goes through the model part by part: first the rows of the embedding, `HEAD_SLICE` at a time (the last
LayerNorm belongs to the last of these parts), then, from the last block to the first, its MLP and its attention. A
micro-batch adds to the gradients of a part after its predecessor has done so. The sum of every tensor therefore has one
order of additions for any number of threads, and two threads that work on successive micro-batches are one part apart.
Products that write no gradient do not wait.

A thread waits inside a kernel, with the GIL released, asleep most of the time. The wait is finite: the predecessor was
started earlier and increments its count, or the thread that stops the run sets `stop`.
"""

import time
from typing import NamedTuple

import numpy as np

from threadloom.kernels.common.waiting import PAUSE, Counts, load_acquire, pause, store_release
from threadloom.kernels.compiling import JIT_ENABLED, jit_strict_fp, jit_strict_inline

HEAD_SLICE = 4096
"""Rows of the embedding per part: a multiple of the GEMM's block, some milliseconds of work."""
_ALL_PARTS = np.iinfo(np.int64).max


class AccumulationTicket(NamedTuple):
    """Ordering ticket of one micro-batch, which adds its gradients after its predecessor; all arrays are (1,)."""

    predecessor_count: Counts  # parts finished by the predecessor; it grows over all batches of a run
    done_count: Counts  # parts finished by this micro-batch; written by its thread alone
    stop: Counts  # if not 0, nobody waits, and the results are discarded
    base: int  # value of both counts at the start of the batch
    accumulate: bool  # False: the gradients are overwritten, by the first micro-batch of a batch in its arena


def single_writer(*, accumulate: bool) -> AccumulationTicket:
    """Return the ticket of a thread that is the only writer of its arena: it never waits."""
    predecessor_count, done_count, stop = np.full(1, _ALL_PARTS, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    return AccumulationTicket(predecessor_count, done_count, stop, 0, accumulate)


def model_parts(vocabulary: int, layers: int) -> int:
    """Return the number of parts of a model with `vocabulary` rows in its embedding and `layers` blocks."""
    return -(-vocabulary // HEAD_SLICE) + 2 * layers


@jit_strict_inline
def last_head_part(vocabulary: int) -> int:
    """Return the part of the last rows of the embedding and of the last norm; the next part is the last MLP."""
    return (vocabulary - 1) // HEAD_SLICE


@jit_strict_inline
def mlp_part(vocabulary: int, layers: int, n: int) -> int:
    """Return the part of the MLP of block `n`; the next part is the block's attention."""
    return last_head_part(vocabulary) + 1 + 2 * (layers - 1 - n)


if JIT_ENABLED:

    @jit_strict_fp
    def wait_for_predecessor(ticket: AccumulationTicket, part: int) -> None:
        """Wait until this micro-batch may add to the gradients of `part`: its predecessor has, or the run stops."""
        predecessor_count, stop = ticket.predecessor_count.ctypes.data, ticket.stop.ctypes.data
        while load_acquire(predecessor_count) <= ticket.base + part and load_acquire(stop) == 0:
            pause()

    @jit_strict_fp
    def mark_part_done(ticket: AccumulationTicket, part: int) -> None:
        """Record that this micro-batch has added to the gradients of `part`."""
        store_release(ticket.done_count.ctypes.data, ticket.base + part + 1)

else:

    def wait_for_predecessor(ticket: AccumulationTicket, part: int) -> None:
        """Wait until this micro-batch may add to the gradients of `part`: its predecessor has, or the run stops."""
        while ticket.predecessor_count[0] <= ticket.base + part and ticket.stop[0] == 0:
            time.sleep(PAUSE * 1e-6)

    def mark_part_done(ticket: AccumulationTicket, part: int) -> None:
        """Record that this micro-batch has added to the gradients of `part`."""
        ticket.done_count[0] = ticket.base + part + 1
