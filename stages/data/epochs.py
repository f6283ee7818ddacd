"""Training sequences by epochs: each one once, in an order that a key determines, before any is repeated.

The sequences of a run are numbered through: number g = batch · S + sequence, with S sequences per update. Number g is
in epoch ⌊g / n⌋ of n sequences, at the place that the epoch's permutation maps g mod n to. So a run has no state to
save: the sequences after a resumption are those of an uninterrupted run, whatever the micro-batch size, and an epoch
may end inside an update. Of several sources with weights, each has epochs of its own (`stages.data.mixture`).
"""

from hashlib import blake2b
from typing import NamedTuple, Protocol

from threadloom.stages.data.permutation import KeyedPermutation


class EpochPlace(NamedTuple):
    """An epoch, and the number of a sequence among those of that epoch."""

    epoch: int
    number: int


class EpochSequences(Protocol):
    """The sequences of each epoch."""

    @property
    def count(self) -> int:
        """Number of sequences of an epoch."""

    def start(self, epoch: int, number: int) -> int:
        """Return what a sequence of an epoch is read by, from its number in the epoch."""


class EpochOrder:
    """The order in which the sequences of each epoch are used."""

    def __init__(self, count: int, seed: int) -> None:
        """An epoch has `count` sequences."""
        self._count, self._seed = count, seed

    def place(self, number: int) -> EpochPlace:
        """Return the epoch of a sequence of the run, and its number in the epoch."""
        epoch, index = divmod(number, self._count)
        return EpochPlace(epoch, KeyedPermutation(self._count, self._seed, epoch)(index))


class EpochWindows:
    """The windows of T + 1 tokens of a token file in each epoch; their inputs do not overlap.

    Each epoch begins at a random offset, so that the same tokens meet in a window only by chance. The offset and the
    end leave out fewer than 2 T tokens of the file; every other token is the input of exactly one window.
    """

    def __init__(self, tokens: int, context: int, seed: int, first: int = 0) -> None:
        """The file, from position `first` on, has `tokens` tokens and at least one window: `tokens` > `context`."""
        self.count = max(1, (tokens - context) // context)
        """Windows of an epoch."""
        self._offsets = min(context, tokens - self.count * context)
        self._context, self._seed, self._first = context, seed, first

    def start(self, epoch: int, number: int) -> int:
        """Return the position in the file at which a window of an epoch starts."""
        return self._first + self.offset(epoch) + number * self._context

    def offset(self, epoch: int) -> int:
        """Return the position of the first window of an epoch, less than T."""
        digest = blake2b(f"threadloom windows {self._seed} {epoch}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") * self._offsets >> 64
