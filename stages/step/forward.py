"""From token ids to the end of the residual stream: draw, embed, forward.

`Draw` and `Embed` run ahead of the other stages: while earlier micro-batches are in forward and backward, the input
embeddings of a micro-batch are gathered into its slot from the version that its batch reads.
"""

from collections.abc import Iterator
from hashlib import blake2b

from threadloom.pipeline import Banks, Pool
from threadloom.stages.config import ContextWarmup
from threadloom.stages.data import BatchSource, divide_sequences, fill_starts
from threadloom.stages.memory import Bank, MicroBatch, MicroBatchSlot
from threadloom.stages.step.compute import Compute


def plan_micro_batches(first_batch: int, steps: int, micro_batches: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches of batches `first_batch` … `steps` - 1 in the order in which they are drawn."""
    for batch in range(first_batch, steps):
        for micro in range(micro_batches):
            yield MicroBatch(batch, micro)


class Draw:
    """Fills a slot with the token ids and targets of a micro-batch; the source checks the ids.

    It also says how many targets of the whole batch count, by which backward divides.
    """

    def __init__(
        self,
        source: BatchSource,
        slots: Pool[MicroBatchSlot],
        dropout_seed: int | None = None,
        warmup: ContextWarmup | None = None,
    ) -> None:
        """`dropout_seed` is the seed of dropout, None without; with `warmup` the first updates have short sequences."""
        self._source = source
        self._slots = slots
        self._dropout_seed = dropout_seed
        self._warmup = warmup
        self._counted = (-1, 0)  # a batch and its targets that count; replaced as a whole, since threads may share it

    def acquire(self, item: MicroBatch) -> None:
        """Wait for a free slot."""
        item.slot = self._slots.take()

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Draw the micro-batch's tokens into its slot."""
        assert item.slot is not None
        self._source.fill(item.batch, item.micro, item.slot.ids, item.slot.targets)
        item.counted = self._counted_in(item.batch)
        fill_starts(self._source, item.batch, item.micro, item.slot.starts)
        if self._warmup:
            divide_sequences(item.slot.starts, self._warmup.lengths[-1], self._warmup.context(item.batch))
        if self._dropout_seed is not None:
            item.slot.dropout_key[0] = _dropout_key(self._dropout_seed, item.batch, item.micro)
        return item

    def _counted_in(self, batch: int) -> int:
        """Return how many targets of a batch count, which all its micro-batches ask one after another."""
        known = self._counted
        if known[0] != batch:
            known = self._counted = batch, self._source.counted(batch)
        return known[1]


def _dropout_key(seed: int, batch: int, micro: int) -> int:
    """Return 64 random bits of a micro-batch, not all of them 0."""
    digest = blake2b(f"{seed} {batch} {micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1


class Embed:
    """Gathers the input embeddings from the version that the batch reads."""

    def __init__(self, compute: Compute, banks: Banks[Bank]) -> None:
        self._compute = compute
        self._banks = banks

    def acquire(self, item: MicroBatch) -> None:
        """Wait until the version that the delay declares for the batch is published, and lease it."""
        item.version = self._banks.version_for(item.batch)
        item.lease = self._banks.lease(item.version)

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Write the input embeddings to the start of the slot's residual stream."""
        slot, lease = item.held()
        self._compute.embed(lease.bank, slot)
        return item


class Forward:
    """Runs all transformer blocks of a micro-batch in one compiled call, which releases the GIL throughout."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def __call__(self, item: MicroBatch) -> MicroBatch:
        """Fill the slot's activations."""
        slot, lease = item.held()
        self._compute.forward(lease.bank, slot)
        return item
