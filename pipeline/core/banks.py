"""Versioned copies of the weights: readers lease a version, one writer produces the next.

A bank is one buffer of weights; the delay τ is the number of updates by which readers may lag behind the newest
version.

Guarantees
    * A leased version does not change until the lease is released: its bank is not written before.
    * Versions are published in order, one at a time; a reader sees a complete version or none.
    * `lease(v)` waits until version v is published, and raises `StaleVersion` if v has been overwritten.
    * Versions newest - τ … newest are kept, so a reader within the declared delay never gets `StaleVersion`.

Assumptions: one writer at a time calls `begin` … `publish`; the batch whose gradient yields version k + 1 has released
its leases before that `begin`.

Ownership: `VersionLedger` decides which bank may be written, without threads; `Banks` adds the waiting. With τ + 1
banks the writer overwrites version newest - τ; at τ = 0 that is the newest version itself, in place. Each extra bank
allows one more version to stay leased (by an evaluation, a checkpoint) without blocking the writer.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from threadloom.pipeline.core.errors import Cancelled

Bank = TypeVar("Bank")


class StaleVersion(RuntimeError):
    """A version of the weights was requested or used that the declared delay does not allow."""


def version_for(batch: int, delay: int, synchronous: int = 0) -> int:
    """Return the version of the weights that batch k = `batch` must use: max(k - τ, 0), with τ = `delay`.

    The first K = `synchronous` batches have no delay and use version k; the others use max(k - τ, K - 1), so the delay
    then grows by one update per batch.
    """
    return batch if batch < synchronous else max(batch - delay, synchronous - 1, 0)


class VersionLedger:
    """The versions in the banks, their readers, and the choice of the bank to write next. Not thread-safe by itself."""

    def __init__(self, banks: int, delay: int, published: Mapping[int, int]) -> None:
        if delay < 0:
            raise ValueError(f"expected delay >= 0, got {delay}")
        if banks < delay + 1:
            raise ValueError(f"delay {delay} needs at least {delay + 1} banks (versions k - {delay} … k), got {banks}")
        self.delay = delay
        self.bank_of = dict(published)  # version → bank; changed only by begin() and publish()
        self.newest = max(published)
        self.readers = [0] * banks  # leases per bank; begin() never chooses a bank with readers
        self.writing: int | None = None  # the bank being written, between begin() and publish()
        expected = range(max(self.newest - delay, 0), self.newest + 1)
        if sorted(self.bank_of) != list(expected) or len(set(self.bank_of.values())) != len(self.bank_of):
            raise ValueError(
                f"delay {delay} needs the initial versions {list(expected)} in separate banks, "
                f"got version → bank {self.bank_of}"
            )

    def can_lease(self, version: int) -> bool:
        """Return True if `version` can be read now, False if it is not complete yet.

        Raises `StaleVersion` if it has been overwritten.
        """
        if version > self.newest:
            return False
        bank = self.bank_of.get(version)
        if bank is None:
            raise StaleVersion(
                f"version {version} of the weights is gone: the oldest kept is {min(self.bank_of)} "
                f"(newest {self.newest}, delay {self.delay}); the reader lags by more than the declared delay"
            )
        return bank != self.writing

    def writable(self) -> int | None:
        """Return the bank to write the next version into, or None while all candidates have readers."""
        kept = {self.bank_of[v] for v in self.bank_of if v > self.newest - self.delay}
        newest = self.bank_of[self.newest]
        candidates = [b for b in range(len(self.readers)) if not self.readers[b] and b not in kept]
        # Prefer a bank other than the newest: in place (delay 0 only) only if no other bank is free.
        candidates.sort(key=lambda bank: bank == newest)
        return candidates[0] if candidates else None

    def begin(self, bank: int) -> None:
        """Assign `bank` to the writer, and drop the version in it unless that is the newest, updated in place."""
        if self.writing is not None:
            raise RuntimeError(
                f"begin called twice: version {self.newest + 1} is already being written to bank {self.writing}"
            )
        self.writing = bank
        for version in [v for v, b in self.bank_of.items() if b == bank and v != self.newest]:
            del self.bank_of[version]

    def publish(self) -> int:
        """Publish the written bank as the newest version, and return the version."""
        if self.writing is None:
            raise RuntimeError("publish called without begin: no bank is being written")
        for version in [v for v, b in self.bank_of.items() if b == self.writing]:
            del self.bank_of[version]
        self.newest += 1
        self.bank_of[self.newest] = self.writing
        self.writing = None
        return self.newest


class Lease(Generic[Bank]):
    """The right to read one version: its bank does not change before `release`, or the end of a `with` block."""

    __slots__ = ("_release", "bank", "version")

    def __init__(self, version: int, bank: Bank, release: Callable[[], None]) -> None:
        self.version = version
        self.bank = bank
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """End the lease. Raises RuntimeError if it has ended already."""
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
    """The current versions, and a histogram of the observed staleness."""

    newest: int
    """The version published last."""
    kept: tuple[int, ...]
    """Versions that can be leased."""
    leases: int
    """Number of leases not yet released."""
    staleness: Mapping[int, int] = field(default_factory=dict)
    """Age of the weights in updates → number of batches. With delay τ, the first τ batches have ages 0 … τ - 1, and all
    others have age τ; synchronous batches before them have age 0."""


class Banks(Generic[Bank]):
    """The weight buffers, with a `VersionLedger` under one lock."""

    def __init__(
        self, banks: Sequence[Bank], delay: int, published: Mapping[int, int] | None = None, synchronous: int = 0
    ) -> None:
        """Manage `banks`; `published` maps each initial version to the index of its bank, {0: 0} by default.

        The first `synchronous` batches have no delay, as in `version_for`.
        """
        self._synchronous = synchronous
        self._banks = tuple(banks)
        self._ledger = VersionLedger(len(self._banks), delay, {0: 0} if published is None else published)
        self._changed = threading.Condition()
        self._aborted = False
        self._held = False  # True inside hold()
        self._staleness: Counter[int] = Counter()  # changed only by check_staleness()

    def total(self, size: Callable[[Bank], int]) -> int:
        """Return the sum of `size(bank)` over all banks."""
        return sum(map(size, self._banks))

    @property
    def delay(self) -> int:
        """The declared delay τ."""
        return self._ledger.delay

    def version_for(self, batch: int) -> int:
        """Return the version that a batch must use by the declared delay."""
        return version_for(batch, self.delay, self._synchronous)

    def lease(self, version: int) -> Lease[Bank]:
        """Lease `version`, waiting until it is published.

        Raises `StaleVersion` if it has been overwritten, `Cancelled` on abort.
        """
        with self._changed:
            self._wait_for(lambda: self._ledger.can_lease(version))
            return self._lease_now(version)

    def lease_newest(self) -> Lease[Bank]:
        """Lease the newest version, waiting only while it is being updated in place."""
        with self._changed:
            self._wait_for(lambda: self._ledger.can_lease(self._ledger.newest))
            return self._lease_now(self._ledger.newest)

    def begin(self) -> tuple[Bank, Bank]:
        """Return (bank of the newest version, bank for the next version), waiting until the latter has no readers.

        At delay 0 both may be the same object: the writer then updates it in place, and readers wait for the new
        version. Raises `Cancelled` on abort.
        """
        with self._changed:
            self._wait_for(lambda: not self._held and self._ledger.writable() is not None)
            target = self._ledger.writable()
            assert target is not None
            source = self._ledger.bank_of[self._ledger.newest]
            self._ledger.begin(target)
            return self._banks[source], self._banks[target]

    def publish(self) -> int:
        """Publish the written bank as the newest version, wake waiting readers, and return the version."""
        with self._changed:
            self.publish_leased(0)
            return self._ledger.newest

    def publish_leased(self, leases: int) -> tuple[Lease[Bank], ...]:
        """Publish the written bank as the newest version, and lease it `leases` times before any writer can begin.

        A lease after `publish` could come too late: the writer may have begun the next version by then, in place.
        """
        with self._changed:
            version = self._ledger.publish()
            leased = tuple(self._lease_now(version) for _ in range(leases))
            self._changed.notify_all()
            return leased

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Wait until no version is being written, and let no writer begin before the block ends. One caller at a time.

        Yields the newest version. Until the end of the block the versions that can be leased stay the same, and so does
        everything that only the writer changes. Raises `Cancelled` on abort.
        """
        with self._changed:
            self._wait_for(lambda: self._ledger.writing is None and not self._held)
            self._held = True
            newest = self._ledger.newest
        try:
            yield newest
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def wait_published(self, version: int) -> None:
        """Wait until `version` or a later one has been published. Raises `Cancelled` on abort."""
        with self._changed:
            self._wait_for(lambda: self._ledger.newest >= version)

    def check_staleness(self, batch: int, version: int) -> None:
        """Record that `batch` was computed with `version`.

        Raises `StaleVersion` if the declared delay requires another.
        """
        expected = self.version_for(batch)
        with self._changed:
            self._staleness[batch - version] += 1
        if version != expected:
            raise StaleVersion(
                f"batch {batch} was computed with version {version} of the weights, expected version {expected} for "
                f"delay {self.delay}: a stage leased the wrong version; the update was not applied"
            )

    def abort(self) -> None:
        """Raise `Cancelled` in all waiting threads, and in later calls that would wait."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def statistics(self) -> BankStatistics:
        """Return the current versions and the staleness observed so far."""
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
