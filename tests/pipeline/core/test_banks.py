"""Tests of the weight banks: VersionLedger by events, then the waiting of Banks under forced interleavings."""

import threading

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from threadloom.pipeline import Banks, Cancelled, Lease, StaleVersion, version_for
from threadloom.pipeline.core.banks import VersionLedger


@pytest.mark.parametrize(("delay", "versions"), [(0, [0, 1, 2, 3]), (1, [0, 0, 1, 2]), (2, [0, 0, 0, 1])])
def test_version_for_is_the_declared_delay(delay: int, versions: list[int]) -> None:
    assert [version_for(batch, delay) for batch in range(4)] == versions


@pytest.mark.parametrize(
    ("delay", "synchronous", "versions"),
    [
        (2, 1, [0, 0, 0, 1, 2, 3, 4]),
        (2, 2, [0, 1, 1, 1, 2, 3, 4]),
        (2, 4, [0, 1, 2, 3, 3, 3, 4]),
        (1, 3, [0, 1, 2, 2, 3, 4, 5]),
        (0, 3, [0, 1, 2, 3, 4, 5, 6]),
        (3, 9, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_synchronous_batches_have_no_delay_which_then_grows_by_one_a_batch(
    delay: int, synchronous: int, versions: list[int]
) -> None:
    assert [version_for(batch, delay, synchronous) for batch in range(7)] == versions
    banks = Banks([object()] * (delay + 1), delay, synchronous=synchronous)
    assert [banks.version_for(batch) for batch in range(7)] == versions


def test_the_ledger_rejects_impossible_settings() -> None:
    with pytest.raises(ValueError, match="at least 3 banks"):
        VersionLedger(2, delay=2, published={0: 0})
    with pytest.raises(ValueError, match="expected delay >= 0"):
        VersionLedger(2, delay=-1, published={0: 0})
    with pytest.raises(ValueError, match=r"versions \[4, 5\]"):
        VersionLedger(2, delay=1, published={5: 0})
    with pytest.raises(ValueError, match="in separate banks"):
        VersionLedger(2, delay=1, published={4: 0, 5: 0})


class LedgerMachine(RuleBasedStateMachine):
    """Random leases and updates: the bank of a leased version does not change, and the declared versions are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: list[tuple[int, int]] = []  # version, bank
        self.contents: dict[int, int] = {}  # bank → version whose bytes it contains

    @initialize(delay=st.integers(0, 3), spare=st.integers(0, 2), first=st.integers(0, 5))
    def start(self, delay: int, spare: int, first: int) -> None:
        oldest = max(first - delay, 0)
        published = {version: index for index, version in enumerate(range(oldest, first + 1))}
        self.ledger = VersionLedger(delay + 1 + spare, delay, published)
        self.contents = {bank: version for version, bank in published.items()}

    @rule(back=st.integers(0, 3))
    def lease(self, back: int) -> None:
        # While version newest + 1 is being written, the batches that read newest - delay have finished.
        oldest = self.ledger.newest - self.ledger.delay + (self.ledger.writing is not None)
        version = max(self.ledger.newest - back, oldest)
        if 0 <= version <= self.ledger.newest and self.ledger.can_lease(version):
            bank = self.ledger.bank_of[version]
            self.ledger.readers[bank] += 1
            self.leases.append((version, bank))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        _, bank = self.leases.pop(which % len(self.leases))
        self.ledger.readers[bank] -= 1

    @precondition(lambda self: self.ledger.writing is None and self.ledger.writable() is not None)
    @rule()
    def begin(self) -> None:
        bank = self.ledger.writable()
        assert bank is not None
        self.ledger.begin(bank)
        self.contents[bank] = self.ledger.newest + 1  # the previous content is lost from here on

    @precondition(lambda self: self.ledger.writing is not None)
    @rule()
    def publish(self) -> None:
        self.ledger.publish()

    @invariant()
    def leased_bytes_are_untouched(self) -> None:
        assert all(self.contents[bank] == version for version, bank in self.leases)

    @invariant()
    def declared_versions_are_kept(self) -> None:
        if not hasattr(self, "ledger"):
            return
        newest, delay = self.ledger.newest, self.ledger.delay
        busy = self.ledger.writing is not None
        # While version newest + 1 is being written, only batches from newest + 1 on have yet to lease.
        for version in range(max(newest - delay + busy, 0), newest + 1):
            assert version in self.ledger.bank_of

    @invariant()
    def each_bank_contains_its_version(self) -> None:
        if hasattr(self, "ledger"):
            for version, bank in self.ledger.bank_of.items():
                assert bank == self.ledger.writing or self.contents[bank] == version


LedgerMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


@pytest.mark.soak
def test_long_sequences_of_leases_and_updates() -> None:
    run_state_machine_as_test(LedgerMachine, settings=settings(max_examples=300, deadline=None))


def test_a_reader_waits_for_a_future_version() -> None:
    banks = Banks(["a", "b"], delay=1)
    got: list[Lease[str]] = []
    reader = threading.Thread(target=lambda: got.append(banks.lease(1)))
    reader.start()
    source, target = banks.begin()
    assert (source, target) == ("a", "b")
    assert banks.publish() == 1
    reader.join(10)
    assert [(lease.version, lease.bank) for lease in got] == [(1, "b")]


def test_the_writer_waits_for_readers_of_the_oldest_version() -> None:
    banks = Banks(["a", "b"], delay=1)
    old = banks.lease(0)
    banks.begin()
    banks.publish()
    order: list[str] = []

    def write() -> None:
        banks.begin()
        order.append("begun")

    assert banks._ledger.writable() is None
    writer = threading.Thread(target=write)
    writer.start()
    order.append("released")
    old.release()
    writer.join(10)
    assert order == ["released", "begun"]


def test_an_extra_bank_lets_the_writer_continue_past_a_leased_version() -> None:
    banks = Banks(["a", "b"], delay=0)
    held = banks.lease(0)
    for version in (1, 2, 3):
        assert banks.begin()[1] == "b"
        assert banks.publish() == version
    assert held.bank == "a"
    held.release()


def test_an_overwritten_version_is_rejected() -> None:
    banks = Banks(["a"], delay=0)
    banks.begin()
    banks.publish()
    with pytest.raises(StaleVersion, match=r"version 0.*oldest kept is 1"):
        banks.lease(0)


def test_a_hold_waits_for_the_writer_and_delays_the_next_one() -> None:
    banks = Banks(["A", "B"], delay=1)
    banks.begin()
    held, release, begun = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with banks.hold() as newest:
            assert newest == 1
            held.set()
            release.wait(5)
            assert not begun.is_set()
            assert banks.statistics().newest == 1

    def write() -> None:
        banks.begin()
        begun.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert not held.is_set(), "version 1 is being written"
    banks.publish()
    assert held.wait(5)
    writer = threading.Thread(target=write)
    writer.start()
    release.set()
    holder.join(5)
    assert begun.wait(5)
    writer.join(5)


def test_a_published_version_is_leased_before_the_next_writer_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only bank of delay 0 is updated in place, and the writer may run as soon as the version is announced."""
    banks = Banks([object()], delay=0)
    banks.begin()
    announced = []
    monkeypatch.setattr(banks._changed, "notify_all", lambda: announced.append(banks._ledger.writable()))
    leases = banks.publish_leased(2)
    assert announced == [None]
    assert [lease.version for lease in leases] == [1, 1]
    for lease in leases:
        lease.release()
    assert announced == [None, None, 0]


def test_staleness_is_counted_and_checked() -> None:
    banks = Banks(["a", "b", "c"], delay=2)
    for batch in range(5):
        banks.check_staleness(batch, version_for(batch, 2))
    with pytest.raises(StaleVersion, match="batch 5 was computed with version 4"):
        banks.check_staleness(5, 4)
    assert banks.statistics().staleness == {0: 1, 1: 2, 2: 3}


def test_a_lease_is_released_once() -> None:
    banks = Banks(["a"], delay=0)
    with banks.lease_newest() as lease:
        assert banks.statistics().leases == 1
    with pytest.raises(RuntimeError, match="released twice"):
        lease.release()
    assert banks.statistics().leases == 0


@pytest.mark.parametrize("wait", [lambda banks: banks.lease(9), lambda banks: banks.wait_published(9)])
def test_an_abort_wakes_waiting_threads(wait: object) -> None:
    banks = Banks(["a"], delay=0)
    raised: list[BaseException] = []

    def waiter() -> None:
        try:
            wait(banks)  # type: ignore[operator]
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=waiter)
    thread.start()
    banks.abort()
    thread.join(10)
    assert [type(error) for error in raised] == [Cancelled]
