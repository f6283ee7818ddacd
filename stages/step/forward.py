"""From token ids to the residual stream's end: draw, embed, forward.

`Draw` and `Embed` run ahead of the rest: the input embeddings of a micro-batch are gathered from the version that its
batch reads, into the slot's own buffer, while earlier micro-batches are in forward and backward.
"""

from collections.abc import Iterator

from threadloom.pipeline import Banks, Pool, version_for
from threadloom.stages.data import BatchSource
from threadloom.stages.memory import Bank, MicroBatch, Slot
from threadloom.stages.step.compute import Compute


def plan_micro_batches(first_batch: int, steps: int, micro_batches: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches of batches `first_batch` … `steps` - 1 in the order in which they are to be drawn."""
    for batch in range(first_batch, steps):
        for micro in range(micro_batches):
            yield MicroBatch(batch, micro)


class Draw:
    """Fills a slot with the token ids of a micro-batch and their targets; the source checks the ids."""

    def __init__(self, source: BatchSource, slots: Pool[Slot]) -> None:
        self._source = source
        self._slots = slots

    def acquire(self, item: MicroBatch) -> None:
        """Wait for a free slot."""
        item.slot = self._slots.take()

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Draw the micro-batch's tokens into its slot."""
        assert item.slot is not None
        self._source.fill(item.batch, item.micro, item.slot.ids, item.slot.targets)
        return item


class Embed:
    """Gathers the input embeddings from the version that the batch reads."""

    def __init__(self, compute: Compute, banks: Banks[Bank]) -> None:
        self._compute = compute
        self._banks = banks

    def acquire(self, item: MicroBatch) -> None:
        """Lease version max(batch - τ, 0), waiting until it is published."""
        item.version = version_for(item.batch, self._banks.delay)
        item.lease = self._banks.lease(item.version)

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Write token plus position embeddings to the start of the slot's residual stream."""
        slot, lease = item.held()
        self._compute.embed(lease.bank, slot)
        return item


class Forward:
    """Runs all transformer blocks of a micro-batch in one call, so that the worker stays in compiled code."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Fill the slot's activations."""
        slot, lease = item.held()
        self._compute.forward(lease.bank, slot)
        return item
