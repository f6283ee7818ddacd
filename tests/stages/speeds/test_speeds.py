"""Measured speeds and the file that stores them: damaged, of another machine, unwritable, concurrent readers."""

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.resolve.resolution import ROWS_PER_MICRO_BATCH
from threadloom.stages.speeds import measuring, record, stored
from threadloom.stages.speeds.measuring import Speeds, measure_speeds
from threadloom.stages.speeds.products import OPERATIONS, PRODUCTS, ROWS
from threadloom.stages.speeds.record import read_speeds, speeds_here, speeds_key, stored_speeds

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="speeds are measured for compiled kernels only")

KEY = {"cpu": "Some CPU", "numba": "0.68"}


class FakeMeasurement:
    """Returns speeds that count the measurements."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times = 0
        self._seconds = seconds

    def __call__(self) -> Speeds:
        self.times += 1
        time.sleep(self._seconds)
        return Speeds(float32=100 + self.times, bf16=50.5)


def test_measured_speeds_are_stored(tmp_path: Path) -> None:
    path, measuring = tmp_path / "a" / "precision.json", FakeMeasurement()
    first = stored_speeds(path, KEY, measuring)
    assert stored_speeds(path, KEY, measuring) == first == read_speeds(path, KEY)
    assert measuring.times == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["precision.json", "precision.lock"]


@pytest.mark.parametrize("changed", [{"cpu": "Another CPU"}, {"numba": "0.69"}, {"more": "x"}])
def test_speeds_of_another_key_are_measured_again(tmp_path: Path, changed: dict[str, str]) -> None:
    path, measuring = tmp_path / "precision.json", FakeMeasurement()
    stored_speeds(path, KEY, measuring)
    assert stored_speeds(path, KEY | changed, measuring).float32 == 102
    assert read_speeds(path, KEY) is None
    assert read_speeds(path, KEY | changed) is not None


GOOD = {"key": KEY, "speeds": {"float32": 100.0, "bf16": None, "bf16x3": 3.0, "fp16": 1.0}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        json.dumps(GOOD).encode()[:-1],
        json.dumps({**GOOD, "speeds": {"bf16": 3.0}}).encode(),
        json.dumps({**GOOD, "speeds": {"float32": 0.0}}).encode(),
        json.dumps({**GOOD, "speeds": {"float32": -1.0}}).encode(),
        json.dumps({**GOOD, "speeds": {"float32": "fast"}}).encode(),
        json.dumps({**GOOD, "speeds": {"float32": float("nan")}}).encode(),
        json.dumps({**GOOD, "speeds": {"float32": 1.0, "bf16": float("inf")}}).encode(),
        b'{"key": {}, "speeds": {"float32": 1e999}}',
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps({**GOOD, "key": "x"}).encode(),
    ],
)
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path, measuring = tmp_path / "precision.json", FakeMeasurement()
    path.write_bytes(content)
    found = stored_speeds(path, KEY, measuring)
    assert measuring.times == 1
    assert read_speeds(path, KEY) == found
    path.write_text(json.dumps(GOOD))
    assert stored_speeds(path, KEY, measuring) == Speeds(float32=100, bf16x3=3, fp16=1)


@pytest.mark.parametrize("obstacle", ["a file in the way", "a folder in the way", "read-only"])
def test_without_a_writable_file_every_process_measures(tmp_path: Path, obstacle: str) -> None:
    folder, measuring = tmp_path / "cache", FakeMeasurement()
    path = folder / "precision" / "machine.json"
    if obstacle == "a file in the way":
        folder.write_text("")
    elif obstacle == "a folder in the way":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o500)  # root may write there all the same
    try:
        assert stored_speeds(path, KEY, measuring).float32 == 101
        assert stored_speeds(path, KEY, measuring).float32 in (101, 102)
    finally:
        if obstacle == "read-only":
            path.parent.chmod(0o700)
    if obstacle != "read-only":
        assert measuring.times == 2


def test_concurrent_threads_measure_once(tmp_path: Path) -> None:
    path, measuring = tmp_path / "precision.json", FakeMeasurement(seconds=0.1)
    found: list[Speeds] = []
    threads = [threading.Thread(target=lambda: found.append(stored_speeds(path, KEY, measuring))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measuring.times == 1
    assert found == [found[0]] * 4


def _measure_slowly(path: Path, started: Any, go_on: Any) -> None:
    def measure() -> Speeds:
        started.set()
        go_on.wait(20)
        return Speeds(float32=7)

    stored_speeds(path, KEY, measure)


def test_another_process_that_measures_is_waited_for(tmp_path: Path) -> None:
    path, measuring = tmp_path / "precision.json", FakeMeasurement()
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    child = context.Process(target=_measure_slowly, args=(path, started, go_on))
    child.start()
    assert started.wait(60)
    waiting = threading.Timer(0.1, go_on.set)
    waiting.start()
    assert stored_speeds(path, KEY, measuring) == Speeds(float32=7)
    child.join()
    waiting.join()
    assert measuring.times == 0


def test_waiting_for_another_process_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LOCK_TIMEOUT", 0.05)
    path = tmp_path / "precision.json"

    def measure() -> Speeds:
        return stored_speeds(path, KEY, FakeMeasurement())  # as another process would, while this one holds the lock

    assert stored_speeds(path, KEY, measure).float32 == 101


@needs_jit
def test_real_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    figures = speeds_here()
    for name in PRODUCTS:
        assert (figures.of(name) or 0) > 0
    (kept,) = (tmp_path / "threadloom" / "precision").glob("*.json")
    assert read_speeds(kept, speeds_key()) == figures
    kept.unlink()
    assert speeds_here() is figures, "the speeds of a process never change"
    begin = time.perf_counter()
    measure_speeds()
    assert time.perf_counter() - begin < 20  # 0.1 s on an idle machine with AVX-512


def _busy() -> None:
    end = time.perf_counter() + 1e-4
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("step", [0.0, 2e-4, 0.0156])
def test_a_coarse_clock_of_the_thread_does_no_harm(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """Clocks that do not advance, or advance in steps longer than a call."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "thread_time", lambda: clock() // step * step if step else 5.0)
    monkeypatch.setattr(measuring, "PRODUCTS", dict.fromkeys(PRODUCTS, lambda: _busy))
    figures = measure_speeds()
    for name in PRODUCTS:
        seconds = OPERATIONS / 1e9 / (figures.of(name) or 0)
        assert 0.9e-4 < seconds < 1e-2


def test_the_product_is_of_a_micro_batch_and_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROWS == ROWS_PER_MICRO_BATCH
    before = speeds_key()
    monkeypatch.setattr(record, "ROWS", 512)
    assert speeds_key() != before


def test_speeds_are_frozen_and_positive() -> None:
    figures = Speeds(float32=1.0)
    with pytest.raises(AttributeError):
        figures.float32 = 3.0  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"float32": 0}, Speeds)
