"""Loss and gradients of a micro-batch, accumulated in its lane.

The loss is computed in this stage because its gradient is: the output projection adds the gradient of its weights
to the lane one chunk of rows at a time, while the chunk's logits are in cache.
"""

from typing import Any

import numpy as np

from threadloom.kernels import single_writer
from threadloom.kernels.common import NO_TERMS, LossTerms
from threadloom.pipeline import Cancelled, Lanes, Pool
from threadloom.stages.config import LossConfig
from threadloom.stages.layouts import as_weights, layout_of
from threadloom.stages.memory import LossParts, MicroBatch, MicroBatchSlot, MicroGradient, OrderedAccumulation
from threadloom.stages.models import Geometry
from threadloom.stages.step.compute import Compute


class Backward:
    """Computes the loss and the gradients of a micro-batch.

    Without `accumulation`, at most one thread at a time may write to a lane; with it, several threads add to a lane in
    the order of their tickets. At most as many threads as `scratch` has elements run at the same time.
    """

    def __init__(
        self,
        compute: Compute,
        lanes: Lanes,
        slots: Pool[MicroBatchSlot],
        scratch: Pool[Any],
        geometry: Geometry,
        loss: LossConfig,
        accumulation: OrderedAccumulation | None = None,
    ) -> None:
        self._compute = compute
        self._lanes = lanes
        self._slots = slots
        self._context, self._layout = geometry.context, layout_of(geometry)
        self._loss = loss
        self._accumulation = accumulation
        self._gradients = tuple(as_weights(geometry, arena) for arena in lanes.arenas)
        self._single_writers = tuple(single_writer(accumulate=False) for _ in lanes.arenas)
        self._scratch = scratch

    def acquire(self, item: MicroBatch) -> None:
        """Wait until the lane's gradients of the previous batch have been reduced."""
        self._lanes.wait_writable(item.batch)

    def __call__(self, item: MicroBatch) -> MicroGradient:
        """Add the micro-batch's gradient to its lane, then release its slot and its version."""
        slot, lease = item.held()
        scratch = self._scratch.take()
        scale = lease.bank.scaler.scale
        # The batch's loss is the mean over all its tokens that count, gradient accumulation included. If there are
        # none, so is the gradient.
        terms = NO_TERMS
        if self._loss.has_terms:
            terms = LossTerms(self._loss.label_smoothing, self._loss.z_loss, np.zeros(2))
        loss = self._accumulate(item, scale * (1.0 / max(item.counted, 1)), scratch, terms)
        self._scratch.give_back(scratch)
        done = MicroGradient(item.batch, item.micro, lease.version, loss, item.counted, scale, _parts(terms))
        item.lease = item.slot = None
        lease.release()
        self._slots.give_back(slot)
        return done

    def _accumulate(self, item: MicroBatch, scale: float, scratch: Any, terms: LossTerms) -> float:
        """Return the sum of the token losses; add the gradient of that sum times `scale` to the lane."""
        slot, lease = item.held()
        lane, accumulate = self._lanes.plan.lane_of(item.micro), not self._lanes.plan.starts_lane(item.micro)
        gradients, accumulation = self._gradients[lane], self._accumulation
        if accumulation:
            ticket = accumulation.ticket(item.batch, item.micro)
        else:
            ticket = self._single_writers[lane]._replace(accumulate=accumulate)
        loss = self._compute.backward(lease.bank, slot, scale, gradients, scratch, ticket, terms)
        dx = self._compute.input_gradient(scratch)
        if accumulation is None:
            self._layout.scatter_input_gradient(
                slot.ids, dx, self._context, slot.starts, gradients, accumulate=accumulate
            )
            return loss
        accumulation.defer(item.micro, slot.ids, slot.starts, dx)
        if accumulation.stopped:
            raise Cancelled
        return loss


def _parts(terms: LossTerms) -> LossParts | None:
    """Return the sums that the kernels left in the terms of a loss, if it has any."""
    return None if terms is NO_TERMS else LossParts(*terms.sums.tolist())
