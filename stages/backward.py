"""Loss and gradients of a micro-batch, summed into its lane.

The loss belongs to this stage because its gradient does: the vocabulary projection writes the gradient of the tied
embedding into the lane, chunk of rows by chunk of rows while the logits are hot, and a lane has one writer at a time.
"""

from pipeline import Lanes, Pool
from stages.compute import Compute
from stages.items import MicroBatch, MicroGradient
from stages.memory import Slot, arrays_bytes, as_weights


class Backward:
    """Takes a micro-batch through loss and backward; the lane that it belongs to must be the caller's alone."""

    def __init__(self, compute: Compute, lanes: Lanes, slots: Pool[Slot], tokens_in_batch: int) -> None:
        self._compute = compute
        self._lanes = lanes
        self._slots = slots
        # The batch's loss is the mean over all its tokens, accumulation included.
        self._scale = 1.0 / tokens_in_batch
        self._gradients = tuple(as_weights(arena) for arena in lanes.arenas)
        self._scratch = tuple(compute.make_scratch() for _ in lanes.arenas)

    @property
    def nbytes(self) -> int:
        """Bytes of the lanes' scratch."""
        return arrays_bytes(self._scratch)

    def acquire(self, item: MicroBatch) -> None:
        """Wait until the lane's gradients of the batch before have been reduced."""
        self._lanes.wait_writable(item.batch)

    def __call__(self, item: MicroBatch) -> MicroGradient:
        """Add the micro-batch's gradient to its lane, then let go of its slot and its version."""
        slot, lease = item.held()
        lane = self._lanes.plan.lane_of(item.micro)
        gradients, scratch = self._gradients[lane], self._scratch[lane]
        accumulate = not self._lanes.plan.starts_lane(item.micro)
        scale = lease.bank.scaler.scale
        loss = self._compute.backward(lease.bank, slot, scale * self._scale, gradients, scratch, accumulate)
        done = MicroGradient(item.batch, item.micro, lease.version, loss, scale)
        item.lease = item.slot = None
        lease.release()
        self._slots.give_back(slot)
        return done
