"""Several threads in one lane: behind whom each adds its gradients, and what waits for the end of the batch.

A lane takes as much memory as the weights. Where they are large it is shared: the micro-batches of a lane follow one
another through the parts of the model (`kernels.common.accumulation`), so the sum has the order that one thread would
give it. The tied embedding is in the first part, as the output projection, and in the last, as the input: a thread that
scattered its input's gradient at its end would come between heads that are far ahead or far behind, depending on
timing. So these gradients are kept, one row a token of the batch, and scattered when all micro-batches are done, in
their order.
"""

import numpy as np

from threadloom import kernels
from threadloom.kernels import AccumulationTicket, Floats, TokenIds, Weights
from threadloom.kernels.common import model_parts
from threadloom.pipeline import LanePlan, Lanes
from threadloom.stages.memory.float32 import as_weights
from threadloom.stages.models import Geometry

_LINE = 8  # counts to a cache line: each count is written by another thread


class OrderedAccumulation:
    """The turns of one run's micro-batches. Backward keeps and waits, the last stage that sees a batch scatters."""

    def __init__(self, geometry: Geometry, lanes: Lanes, sequences: int) -> None:
        micro_batches, rows = lanes.plan.micro_batches, sequences * geometry.context
        self._context = geometry.context
        self._parts = model_parts(geometry.vocabulary, geometry.layers)
        self._plan: LanePlan = lanes.plan
        self._gradients: tuple[Weights, ...] = tuple(as_weights(arena) for arena in lanes.arenas)
        self._dx = np.zeros((micro_batches, rows, geometry.channels), np.float32)
        self._ids = np.zeros((micro_batches, rows), np.int32)
        # Finished parts by micro-batch, all batches counted: written by the thread that holds it, read by the next.
        self._finished = np.zeros((micro_batches, _LINE), np.int64)
        self._alone = kernels.single_writer()
        self._stop = np.zeros(1, np.int64)  # set by abort() alone

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of a batch."""
        return self._dx.nbytes + self._ids.nbytes

    @property
    def stopped(self) -> bool:
        """Whether turns are no longer kept: what was computed is then worth nothing."""
        return bool(self._stop[0])

    def ticket(self, batch: int, micro: int) -> AccumulationTicket:
        """Return the turn of a micro-batch: behind the one before it in its lane and batch."""
        first = self._plan.starts_lane(micro)  # the batches before are reduced before a lane is written again
        predecessor = self._alone.predecessor_count if first else self._finished[micro - self._plan.lanes, :1]
        return AccumulationTicket(predecessor, self._finished[micro, :1], self._stop, batch * self._parts)

    def keep(self, micro: int, ids: TokenIds, dx: Floats) -> None:
        """Keep the gradient of a micro-batch's input embeddings, and which they were."""
        np.copyto(self._ids[micro], ids)
        np.copyto(self._dx[micro], dx)

    def scatter(self) -> None:
        """Add what was kept to the lanes, in the order of the micro-batches; all of them must be done."""
        for micro in range(self._plan.micro_batches):
            gradients = self._gradients[self._plan.lane_of(micro)]
            kernels.embedding_backward(
                self._ids[micro], self._dx[micro], self._context, gradients.wte, gradients.wpe,
                not self._plan.starts_lane(micro),
            )  # fmt: skip

    def abort(self) -> None:
        """Let everyone who waits for a turn go on, to no purpose."""
        self._stop[0] = 1
