"""Loss and gradients of a micro-batch, summed into its lane.

The loss belongs to this stage because its gradient does: the vocabulary projection writes the gradient of the tied
embedding into the lane, chunk of rows by chunk of rows while the logits are hot.
"""

from typing import Any

from threadloom import kernels
from threadloom.kernels import single_writer
from threadloom.pipeline import Cancelled, Lanes, Pool
from threadloom.stages.memory import MicroBatch, MicroGradient, OrderedAccumulation, Slot, as_weights
from threadloom.stages.step.compute import Compute


class Backward:
    """Takes a micro-batch through loss and backward.

    Its lane must be the caller's alone; with `turns` other threads may add to it too, each in its turn. As many can
    be in here as `scratch` has elements (`Compute.allocate_scratch`).
    """

    def __init__(
        self,
        compute: Compute,
        lanes: Lanes,
        slots: Pool[Slot],
        scratch: Pool[Any],
        tokens_in_batch: int,
        context: int,
        turns: OrderedAccumulation | None = None,
    ) -> None:
        self._compute = compute
        self._lanes = lanes
        self._slots = slots
        # The batch's loss is the mean over all its tokens, accumulation included.
        self._scale = 1.0 / tokens_in_batch
        self._context = context
        self._turns = turns
        self._gradients = tuple(as_weights(arena) for arena in lanes.arenas)
        self._alone = tuple(single_writer() for _ in lanes.arenas)
        self._scratch = scratch

    def acquire(self, item: MicroBatch) -> None:
        """Wait until the lane's gradients of the batch before have been reduced."""
        self._lanes.wait_writable(item.batch)

    def __call__(self, item: MicroBatch) -> MicroGradient:
        """Add the micro-batch's gradient to its lane, then let go of its slot and its version."""
        slot, lease = item.held()
        scratch = self._scratch.take()
        scale = lease.bank.scaler.scale
        loss = self._sum(item, scale * self._scale, scratch)
        self._scratch.give_back(scratch)
        done = MicroGradient(item.batch, item.micro, lease.version, loss, scale)
        item.lease = item.slot = None
        lease.release()
        self._slots.give_back(slot)
        return done

    def _sum(self, item: MicroBatch, scale: float, scratch: Any) -> float:
        """Return the sum of the losses; add the gradient of that sum times `scale` to the lane."""
        slot, lease = item.held()
        lane, accumulate = self._lanes.plan.lane_of(item.micro), not self._lanes.plan.starts_lane(item.micro)
        gradients, turns = self._gradients[lane], self._turns
        ticket = turns.ticket(item.batch, item.micro) if turns else self._alone[lane]
        loss = self._compute.backward(lease.bank, slot, scale, gradients, scratch, accumulate, ticket)
        dx = self._compute.input_gradient(scratch)
        if turns is None:
            kernels.embedding_backward(slot.ids, dx, self._context, gradients.wte, gradients.wpe, accumulate)
            return loss
        turns.keep(item.micro, slot.ids, dx)
        if turns.stopped:
            raise Cancelled
        return loss
