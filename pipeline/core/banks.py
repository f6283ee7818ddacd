"""Versioned copies of the weights: readers lease a version and keep it, one writer makes the next.

Guarantees
    * A leased version does not change until the lease is released: its bank is never written meanwhile.
    * Versions are published one by one in order; a reader sees a version whole or not at all.
    * `lease(v)` waits for a version that is not published yet, and raises `StaleVersion` for one that is gone.
    * A reader that asks within the declared delay never finds its version gone: newest - delay … newest are kept.

Assumptions: one writer at a time calls `begin` … `publish`; the batch whose gradient makes version k + 1 has released
its leases by then.

Ownership: which bank may be written is decided by `VersionLedger`, which knows no threads; `Banks` adds the waiting.
With delay + 1 banks the writer overwrites version newest - delay; at delay 0 that is the newest itself, in place.
Each spare bank lets one more leased version (of an evaluation, a checkpoint) live on without making the writer wait.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from threadloom.pipeline.core.errors import Cancelled

Bank = TypeVar("Bank")


class StaleVersion(RuntimeError):
    """A version of the weights was asked for, or used, that the declared delay does not allow."""


def version_for(batch: int, delay: int) -> int:
    """Return the version that batch `batch` must be computed with: w_max(k - τ, 0)."""
    return max(batch - delay, 0)


class VersionLedger:
    """Which bank holds which version, who reads it, and which one may be written next: decisions only, no threads."""

    def __init__(self, banks: int, delay: int, published: Mapping[int, int]) -> None:
        if delay < 0:
            raise ValueError(f"delay must be at least 0, got {delay}")
        if banks < delay + 1:
            raise ValueError(f"delay {delay} needs at least {delay + 1} banks (versions k - {delay} … k), got {banks}")
        self.delay = delay
        self.bank_of = dict(published)  # version → bank; only begin() and publish() change it
        self.newest = max(published)
        self.readers = [0] * banks  # leases of each bank; a bank with readers is never chosen by begin()
        self.writing: int | None = None  # the bank being written, between begin() and publish()
        expected = range(max(self.newest - delay, 0), self.newest + 1)
        if sorted(self.bank_of) != list(expected) or len(set(self.bank_of.values())) != len(self.bank_of):
            raise ValueError(
                f"banks must start with versions {list(expected)}, each in a bank of its own, for delay {delay}; "
                f"got {self.bank_of}"
            )

    def can_lease(self, version: int) -> bool:
        """Say whether `version` can be read now; False means that it is still to come."""
        if version > self.newest:
            return False
        bank = self.bank_of.get(version)
        if bank is None:
            raise StaleVersion(
                f"version {version} of the weights was asked for, but the oldest kept is {min(self.bank_of)} "
                f"(newest {self.newest}, delay {self.delay}): the reader came too late for the declared delay"
            )
        return bank != self.writing

    def writable(self) -> int | None:
        """Return the bank that the next version may be written to, or None while readers hold all candidates."""
        kept = {self.bank_of[v] for v in self.bank_of if v > self.newest - self.delay}
        newest = self.bank_of[self.newest]
        candidates = [b for b in range(len(self.readers)) if not self.readers[b] and b not in kept]
        # Out of place where there is room; the newest version is written over (delay 0 only) when nothing else is free.
        candidates.sort(key=lambda bank: bank == newest)
        return candidates[0] if candidates else None

    def begin(self, bank: int) -> None:
        """Give `bank` to the writer; the version that it held is gone unless it is the source written in place."""
        if self.writing is not None:
            raise RuntimeError(f"version {self.newest + 1} is already being written to bank {self.writing}")
        self.writing = bank
        for version in [v for v, b in self.bank_of.items() if b == bank and v != self.newest]:
            del self.bank_of[version]

    def publish(self) -> int:
        """Make the written bank the newest version and return its number."""
        if self.writing is None:
            raise RuntimeError("publish without begin: no bank is being written")
        for version in [v for v, b in self.bank_of.items() if b == self.writing]:
            del self.bank_of[version]
        self.newest += 1
        self.bank_of[self.newest] = self.writing
        self.writing = None
        return self.newest


class Lease(Generic[Bank]):
    """The right to read one version; the bank behind it stays as it is until `release` (or the end of a `with`)."""

    __slots__ = ("_release", "bank", "version")

    def __init__(self, version: int, bank: Bank, release: Callable[[], None]) -> None:
        self.version = version
        self.bank = bank
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the version back; a second call is an error in the caller."""
        if self._release is None:
            raise RuntimeError(f"the lease of version {self.version} was released twice")
        release, self._release = self._release, None
        release()

    def __enter__(self) -> "Lease[Bank]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


@dataclass(frozen=True)
class BankStatistics:
    """The versions now and the staleness that was seen."""

    newest: int
    """Version published last."""
    kept: tuple[int, ...]
    """Versions that can be leased."""
    leases: int
    """Leases not yet released."""
    staleness: Mapping[int, int] = field(default_factory=dict)
    """How many batches were computed with weights that many updates old; with delay τ all but the first τ lie at τ."""


class Banks(Generic[Bank]):
    """The banks themselves, with the waiting that `VersionLedger` asks for."""

    def __init__(self, banks: Sequence[Bank], delay: int, published: Mapping[int, int] | None = None) -> None:
        """`published` maps the versions that the banks hold at the start to their index; {0: 0} by default."""
        self._banks = tuple(banks)
        self._ledger = VersionLedger(len(self._banks), delay, {0: 0} if published is None else published)
        self._changed = threading.Condition()
        self._aborted = False
        self._staleness: Counter[int] = Counter()  # only check_staleness() adds to it

    def total(self, size: Callable[[Bank], int]) -> int:
        """Return the sum of a size over all banks."""
        return sum(map(size, self._banks))

    @property
    def delay(self) -> int:
        """The declared delay τ."""
        return self._ledger.delay

    def lease(self, version: int) -> Lease[Bank]:
        """Lease `version`, waiting until it is published; raises `StaleVersion` if it is gone, `Cancelled` on abort."""
        with self._changed:
            self._wait_for(lambda: self._ledger.can_lease(version))
            return self._lease_now(version)

    def lease_newest(self) -> Lease[Bank]:
        """Lease whatever version is the newest, waiting only while it is being written over in place."""
        with self._changed:
            self._wait_for(lambda: self._ledger.can_lease(self._ledger.newest))
            return self._lease_now(self._ledger.newest)

    def begin(self) -> tuple[Bank, Bank]:
        """Return (bank of the newest version, bank to write the next into), waiting for readers to leave the latter.

        The two may be the same object at delay 0: the writer then works in place, and readers wait for the new version.
        """
        with self._changed:
            self._wait_for(lambda: self._ledger.writable() is not None)
            target = self._ledger.writable()
            assert target is not None
            source = self._ledger.bank_of[self._ledger.newest]
            self._ledger.begin(target)
            return self._banks[source], self._banks[target]

    def publish(self) -> int:
        """Make what was written the newest version, wake its readers and return its number."""
        with self._changed:
            version = self._ledger.publish()
            self._changed.notify_all()
            return version

    def wait_published(self, version: int) -> None:
        """Wait until `version` or a later one is published; raises `Cancelled` on abort."""
        with self._changed:
            self._wait_for(lambda: self._ledger.newest >= version)

    def check_staleness(self, batch: int, version: int) -> None:
        """Record that `batch` was computed with `version`, and refuse it if the declared delay says another."""
        expected = version_for(batch, self.delay)
        with self._changed:
            self._staleness[batch - version] += 1
        if version != expected:
            raise StaleVersion(
                f"batch {batch} was computed with version {version} of the weights, but delay {self.delay} declares "
                f"version {expected}: a stage leased the wrong version; the update was not made"
            )

    def abort(self) -> None:
        """Wake everyone who waits with `Cancelled`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def statistics(self) -> BankStatistics:
        """Return the versions now and the staleness seen so far."""
        with self._changed:
            ledger = self._ledger
            kept = tuple(sorted(ledger.bank_of))
            return BankStatistics(ledger.newest, kept, sum(ledger.readers), dict(sorted(self._staleness.items())))

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._aborted or ready())
        if self._aborted:
            raise Cancelled

    def _lease_now(self, version: int) -> Lease[Bank]:
        index = self._ledger.bank_of[version]
        self._ledger.readers[index] += 1
        return Lease(version, self._banks[index], lambda: self._release(index))

    def _release(self, index: int) -> None:
        with self._changed:
            self._ledger.readers[index] -= 1
            self._changed.notify_all()
