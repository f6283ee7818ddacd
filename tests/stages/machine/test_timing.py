"""The measuring loops, with clocks and workers of the tests."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from threadloom.stages.machine.streaming import stream_add, stream_add_in_place, stream_copy, stream_negate
from threadloom.stages.machine.timing import alternate_rounds, seconds_per_call, throughput


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def test_a_call_is_repeated_until_the_time_has_passed() -> None:
    calls: list[int] = []
    clock = ticking(0.5)
    assert seconds_per_call(lambda: calls.append(1), 2.0, lambda: next(clock)) == 0.5
    assert len(calls) == 4


def test_a_call_is_made_at_least_once() -> None:
    calls: list[int] = []
    clock = ticking(3.0)
    assert seconds_per_call(lambda: calls.append(1), 0.0, lambda: next(clock)) == 3.0
    assert len(calls) == 1


def test_throughput_adds_threads_and_reduces_windows() -> None:
    seen: list[float] = []

    def smallest(rates: Iterable[float]) -> float:
        seen.extend(rates)
        return min(seen)

    found = throughput([(lambda: None, 2.0)] * 2, 0.001, windows=3, reduce=smallest)
    assert len(seen) == 3
    assert found == min(seen) > 1000
    assert throughput([(lambda: None, 2.0)], 0.001) > 1000


@pytest.mark.parametrize("stream", [stream_add, stream_add_in_place, stream_copy, stream_negate])
@pytest.mark.parametrize("size", [1, 1200])
def test_streaming_passes_count_their_bytes(stream: object, size: int) -> None:
    assert callable(stream)
    call, moved = stream(size)
    call()
    arrays = {stream_add: 3, stream_add_in_place: 2, stream_copy: 2, stream_negate: 1}[stream]
    count = max(1, size // (4 * arrays))
    per_element = {stream_add: 12, stream_add_in_place: 12, stream_copy: 8, stream_negate: 8}[stream]
    assert moved == per_element * count


@dataclass(frozen=True)
class Timed:
    updates: int
    seconds: float


@dataclass
class FakeWorker:
    name: str
    pace: float
    log: list[tuple[str, int]]
    asked: list[int] = field(default_factory=list)

    def run(self, updates: int) -> Timed:
        self.log.append((self.name, updates))
        return Timed(updates, self.pace * updates)


def test_rounds_alternate_in_order_and_last_as_long_as_asked() -> None:
    log: list[tuple[str, int]] = []
    said: list[str] = []
    workers = [FakeWorker("fast", 0.1, log), FakeWorker("slow", 10.0, log)]
    found = alternate_rounds(workers, 2.0, rounds=2, least_updates=3, warm_up=1, on_progress=said.append)
    assert log == [
        ("fast", 1), ("fast", 3), ("slow", 1), ("slow", 3),
        ("fast", 10), ("slow", 3), ("slow", 3), ("fast", 10),
    ]  # fmt: skip
    assert [[one.updates for one in results] for results in found] == [[10, 10], [3, 3]]
    assert said == ["warming up fast", "warming up slow", "round 1 of 2", "round 2 of 2"]
