"""Ordered accumulation by several threads into one gradient lane.

A lane takes as much memory as the weights. Large models share lanes among threads: the micro-batches of a lane follow
one another through the parts of the model (`kernels.common.accumulation`), so the sum has the order that a single
thread would produce.

A tied token embedding belongs to the first part (as the output projection) and to the last (as the input). If a thread
scattered its input gradient at the end of its backward pass, the order relative to other micro-batches' heads would
depend on timing. Input gradients are therefore deferred: they are kept, one row per token of the batch, and scattered
in the order of the micro-batches once all of them are done.
"""

import numpy as np

from threadloom import kernels
from threadloom.kernels import AccumulationTicket, Floats, TokenIds
from threadloom.kernels.common import DocumentStarts, model_parts
from threadloom.pipeline import LanePlan, Lanes
from threadloom.stages.layouts import as_weights, layout_of
from threadloom.stages.models import Geometry

_CACHE_LINE = 8  # int64 elements: each count is written by another thread, so each has its own line


class OrderedAccumulation:
    """Tickets and deferred input gradients of the micro-batches that share lanes.

    `Backward` takes tickets and defers, `Collect` scatters. All arrays are allocated here.
    """

    def __init__(self, geometry: Geometry, lanes: Lanes, sequences: int, *, borders: bool = False) -> None:
        """With `borders` the micro-batches have those of documents."""
        micro_batches, rows = lanes.plan.micro_batches, sequences * geometry.context
        self._context, self._layout = geometry.context, layout_of(geometry)
        self._parts = model_parts(geometry.projection_rows, geometry.layers)
        self._plan: LanePlan = lanes.plan
        self._gradients = tuple(as_weights(geometry, arena) for arena in lanes.arenas)
        self._dx = np.zeros((micro_batches, rows, geometry.channels), np.float32)
        self._ids = np.zeros((micro_batches, rows), np.int32)
        self._starts = np.zeros((micro_batches, rows if borders else 0), np.int32)
        # Finished parts per micro-batch, summed over all batches. Each is written by the thread that holds the
        # micro-batch, and read by the thread that holds its successor in the lane.
        self._done_counts = np.zeros((micro_batches, _CACHE_LINE), np.int64)
        self._first_ticket = kernels.single_writer(accumulate=False)
        self._stop = np.zeros(1, np.int64)  # written by abort() alone

    @property
    def nbytes(self) -> int:
        """Bytes of the deferred gradients, their token ids and the borders of their documents."""
        return self._dx.nbytes + self._ids.nbytes + self._starts.nbytes

    @property
    def stopped(self) -> bool:
        """True after `abort`: waits have ended early, and the gradients are invalid."""
        return bool(self._stop[0])

    def ticket(self, batch: int, micro: int) -> AccumulationTicket:
        """Return the ticket of a micro-batch, which orders it after its predecessor in the same lane and batch."""
        first = self._plan.starts_lane(micro)  # never waits: earlier batches have been reduced by then
        predecessor = self._first_ticket.predecessor_count if first else self._done_counts[micro - self._plan.lanes, :1]
        return AccumulationTicket(
            predecessor, self._done_counts[micro, :1], self._stop, batch * self._parts, accumulate=not first
        )

    def defer(self, micro: int, ids: TokenIds, starts: DocumentStarts, dx: Floats) -> None:
        """Keep the gradient of a micro-batch's input embeddings, with its token ids and borders."""
        np.copyto(self._ids[micro], ids)
        np.copyto(self._starts[micro], starts)
        np.copyto(self._dx[micro], dx)

    def scatter_deferred(self) -> None:
        """Add the deferred gradients to the lanes in the order of the micro-batches, all of which must be done."""
        for micro in range(self._plan.micro_batches):
            gradients = self._gradients[self._plan.lane_of(micro)]
            self._layout.scatter_input_gradient(
                self._ids[micro], self._dx[micro], self._context, self._starts[micro], gradients,
                accumulate=not self._plan.starts_lane(micro),
            )  # fmt: skip

    def abort(self) -> None:
        """End all waits for predecessors; the gradients of the batch are invalid from now on."""
        self._stop[0] = 1
