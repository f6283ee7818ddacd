"""The handlers of stop signals: what the first and the second signal do in each part of a command."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from threadloom.stages.console import Stopped, StopSignals, signal_numbers, stop_signals as module
from threadloom.stages.console.json_worker import module_command

pytestmark = pytest.mark.timeout(20)

WAIT = 10.0


class Ends:
    """The ends of the process that would have happened."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.first = threading.Event()

    def __call__(self, status: int) -> None:
        self.statuses.append(status)
        self.first.set()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    found = Ends()
    monkeypatch.setattr("os._exit", found)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock; the returned function sets it."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (*signal_numbers.STOP_SIGNALS, *signal_numbers.CHECKPOINT_SIGNALS)]
    yield
    assert [
        signal.getsignal(number) for number in (*signal_numbers.STOP_SIGNALS, *signal_numbers.CHECKPOINT_SIGNALS)
    ] == before


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_the_first_signal_is_raised_where_the_command_cleans_up(
    number: signal.Signals, status: int, name: str, ends: Ends
) -> None:
    with StopSignals() as signals, pytest.raises(Stopped) as stopped, signals.raising():
        signal.raise_signal(number)
    assert (stopped.value.status, stopped.value.name) == (status, name)
    assert not ends.statuses


def test_before_there_is_anything_to_clean_up_the_process_ends(ends: Ends) -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGHUP)
    assert ends.statuses[0] == 129


def test_a_deferred_stop_calls_its_function_once_and_is_raised_at_the_end(ends: Ends) -> None:
    calls, called = list[Stopped](), threading.Event()

    def stop(stopped: Stopped) -> None:
        calls.append(stopped)
        called.set()

    with StopSignals() as signals, signals.raising(), pytest.raises(Stopped) as raised:
        with signals.deferred(stop, lambda: None):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # `timeout` sends it to the process and to its group
            assert called.wait(WAIT)
    assert raised.value is calls[0]
    assert len(calls) == 1
    assert not ends.statuses


def test_a_second_signal_ends_the_process_and_says_what_is_left(
    ends: Ends, clock: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    called = threading.Event()
    with StopSignals() as signals, pytest.raises(Stopped), signals.raising(lambda: "; step 3 is saved"):
        with signals.deferred(lambda _: called.set(), lambda: None):
            signal.raise_signal(signal.SIGTERM)
            assert called.wait(WAIT)
            clock(module.REPEAT + 0.1)
            signal.raise_signal(signal.SIGINT)
            assert ends.first.wait(WAIT)
    assert ends.statuses[0] == 130
    assert capfd.readouterr().err.splitlines()[0].endswith("stopped by Ctrl-C, at once; step 3 is saved")


def test_sigusr1_saves_and_nothing_is_raised(ends: Ends) -> None:
    saved = threading.Event()
    with StopSignals() as signals, signals.raising():
        signal.raise_signal(signal.SIGUSR1)  # nothing to save yet
        with signals.deferred(lambda _: None, saved.set):
            signal.raise_signal(signal.SIGUSR1)
            assert saved.wait(WAIT)
    assert not ends.statuses


@pytest.mark.parametrize("deferred", [True, False])
def test_the_time_limit_acts_as_sigterm(deferred: bool, ends: Ends) -> None:
    called, never = threading.Event(), threading.Event()
    with StopSignals() as signals, pytest.raises(Stopped) as stopped, signals.raising():
        if deferred:
            with signals.deferred(lambda _: called.set(), lambda: None):
                signals.limit_time(1e-3)
                assert called.wait(WAIT)
        else:
            signals.limit_time(1e-3)
            never.wait(WAIT)
    assert (stopped.value.status, stopped.value.name) == (143, "the time limit")
    assert not ends.statuses


def test_a_command_that_swallows_the_signal_is_ended(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.01)
    with StopSignals() as signals, signals.raising():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            assert ends.first.wait(WAIT)
    assert ends.statuses[0] == 143


def test_a_signal_raised_in_a_destructor_is_delivered_again(ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with StopSignals() as signals, pytest.raises(Stopped), signals.raising():
        Dying()
        threading.Event().wait(WAIT)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(number: signal.Signals, ends: Ends) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as signals, signals.raising():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert not ends.statuses


def test_signals_that_the_system_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    assert signal_numbers._numbers("SIGINT", "SIGHUP") == (signal.SIGINT,)


def test_without_a_thread_the_handlers_still_work(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    called = list[Stopped]()
    with StopSignals() as signals, pytest.raises(Stopped), signals.raising():
        with signals.deferred(called.append, lambda: None):
            signal.raise_signal(signal.SIGTERM)
    assert len(called) == 1
    assert not ends.statuses


def test_child_processes_ignore_stop_signals() -> None:
    boot = module_command("module")[3]
    before = [signal.getsignal(number) for number in signal_numbers.STOP_SIGNALS]
    try:
        exec(boot.split("sys.path")[0], {})
        assert [signal.getsignal(number) for number in signal_numbers.STOP_SIGNALS] == [signal.SIG_IGN] * 3
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        for number, handler in zip(signal_numbers.STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
