"""The keys of dropout that `Draw` writes: one for each micro-batch of a run, none without dropout."""

from itertools import product

from threadloom.kernels import TokenIds
from threadloom.pipeline import Pool
from threadloom.stages.memory import MicroBatch, MicroBatchSlot
from threadloom.stages.memory.precision_memory import allocate_token_ids
from threadloom.stages.step import Draw


class NoTokens:
    """A source of micro-batches that leaves the ids as they are."""

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        """Do nothing."""

    def counted(self, batch: int) -> int:
        """Return a number that nobody reads."""
        return 1


def key(seed: int | None, batch: int, micro: int) -> int:
    """Return the key of a micro-batch, drawn into a slot that has one of an earlier micro-batch."""
    slot = MicroBatchSlot(*allocate_token_ids(1), None)
    draw, item = Draw(NoTokens(), Pool([slot]), seed), MicroBatch(batch, micro)
    draw.acquire(item)
    draw(item)
    return int(slot.dropout_key[0])


def test_every_micro_batch_has_a_key() -> None:
    places = list(product((1, 2, 12), (0, 1, 2, 11), (0, 1, 2)))
    keys = [key(*place) for place in places]
    assert len(set(keys)) == len(places)
    assert 0 not in keys


def test_the_key_is_a_function_of_its_place() -> None:
    assert key(3, 4, 5) == key(3, 4, 5)


def test_without_dropout_the_key_is_zero() -> None:
    assert key(None, 4, 5) == 0
