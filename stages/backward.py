"""Loss and gradients of a micro-batch, summed into its lane.

The loss belongs to this stage because its gradient does: the vocabulary projection writes the gradient of the tied
embedding into the lane, chunk of rows by chunk of rows while the logits are hot, and a lane has one writer at a time.
"""

import kernels
from pipeline import Lanes, Pool
from stages.items import MicroBatch, MicroGradient
from stages.memory import Slot, allocate_scratch, as_weights
from stages.parameters import Geometry


class Backward:
    """Takes a micro-batch through loss and backward; the lane that it belongs to must be the caller's alone."""

    def __init__(
        self, geometry: Geometry, lanes: Lanes, slots: Pool[Slot], sequences: int, tokens_in_batch: int
    ) -> None:
        self._geometry = geometry
        self._lanes = lanes
        self._slots = slots
        self._sequences = sequences
        # The batch's loss is the mean over all its tokens, accumulation included.
        self._scale = 1.0 / tokens_in_batch
        self._gradients = tuple(as_weights(arena) for arena in lanes.arenas)
        self._scratch = tuple(allocate_scratch(geometry, sequences) for _ in lanes.arenas)

    @property
    def nbytes(self) -> int:
        """Bytes of the lanes' scratch."""
        return sum(array.nbytes for scratch in self._scratch for array in scratch)

    def acquire(self, item: MicroBatch) -> None:
        """Wait until the lane's gradients of the batch before have been reduced."""
        self._lanes.wait_writable(item.batch)

    def __call__(self, item: MicroBatch) -> MicroGradient:
        """Add the micro-batch's gradient to its lane, then let go of its slot and its version."""
        slot, lease = item.held()
        weights, activations = lease.bank.weights, slot.activations
        lane = self._lanes.plan.lane_of(item.micro)
        gradients, scratch = self._gradients[lane], self._scratch[lane]
        accumulate = not self._lanes.plan.starts_lane(item.micro)
        scale = lease.bank.scaler.scale
        loss = kernels.head_backward(
            weights, activations.x[-1], slot.targets, scale * self._scale, gradients, scratch, accumulate
        )
        kernels.blocks_backward(
            weights, activations, gradients, scratch, self._sequences, self._geometry.heads, accumulate
        )
        kernels.embedding_backward(
            slot.ids, scratch.dx, self._geometry.context, gradients.wte, gradients.wpe, accumulate
        )
        done = MicroGradient(item.batch, item.micro, lease.version, float(loss), scale)
        item.lease = item.slot = None
        lease.release()
        self._slots.give_back(slot)
        return done
