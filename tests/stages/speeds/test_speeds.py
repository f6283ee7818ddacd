"""Measured speeds and the file that they are kept in: damaged, foreign, unwritable, and asked for by many at once."""

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
from threadloom.stages.speeds import speeds
from threadloom.stages.speeds.speeds import (
    PRODUCTS,
    Speeds,
    kept_speeds,
    measure_speeds,
    read_speeds,
    speeds_here,
    speeds_key,
)

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="without the compiler nothing is measured")

KEY = {"cpu": "Some CPU", "numba": "0.68"}


class Measuring:
    """Hands out figures that tell how often they were asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times = 0
        self._seconds = seconds

    def __call__(self) -> Speeds:
        self.times += 1
        time.sleep(self._seconds)
        return Speeds(float32=100 + self.times, bf16=50.5)


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    path, measuring = tmp_path / "a" / "precision.json", Measuring()
    first = kept_speeds(path, KEY, measuring)
    assert kept_speeds(path, KEY, measuring) == first == read_speeds(path, KEY)
    assert measuring.times == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["precision.json", "precision.lock"]


@pytest.mark.parametrize("changed", [{"cpu": "Another CPU"}, {"numba": "0.69"}, {"more": "x"}])
def test_figures_of_something_else_are_measured_anew(tmp_path: Path, changed: dict[str, str]) -> None:
    path, measuring = tmp_path / "precision.json", Measuring()
    kept_speeds(path, KEY, measuring)
    assert kept_speeds(path, KEY | changed, measuring).float32 == 102
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
    path, measuring = tmp_path / "precision.json", Measuring()
    path.write_bytes(content)
    found = kept_speeds(path, KEY, measuring)
    assert measuring.times == 1
    assert read_speeds(path, KEY) == found
    path.write_text(json.dumps(GOOD))
    assert kept_speeds(path, KEY, measuring) == Speeds(float32=100, bf16x3=3, fp16=1)


@pytest.mark.parametrize("obstacle", ["a file in the way", "a folder in the way", "read-only"])
def test_where_nothing_can_be_written_it_is_measured_each_time(tmp_path: Path, obstacle: str) -> None:
    folder, measuring = tmp_path / "cache", Measuring()
    path = folder / "precision" / "machine.json"
    if obstacle == "a file in the way":
        folder.write_text("")
    elif obstacle == "a folder in the way":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o500)  # root may write there all the same
    try:
        assert kept_speeds(path, KEY, measuring).float32 == 101
        assert kept_speeds(path, KEY, measuring).float32 in (101, 102)
    finally:
        if obstacle == "read-only":
            path.parent.chmod(0o700)
    if obstacle != "read-only":
        assert measuring.times == 2


def test_threads_that_ask_at_once_measure_once(tmp_path: Path) -> None:
    path, measuring = tmp_path / "precision.json", Measuring(seconds=0.1)
    found: list[Speeds] = []
    threads = [threading.Thread(target=lambda: found.append(kept_speeds(path, KEY, measuring))) for _ in range(4)]
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

    kept_speeds(path, KEY, measure)


def test_a_process_that_measures_is_waited_for(tmp_path: Path) -> None:
    path, measuring = tmp_path / "precision.json", Measuring()
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    child = context.Process(target=_measure_slowly, args=(path, started, go_on))
    child.start()
    assert started.wait(60)
    waiting = threading.Timer(0.1, go_on.set)
    waiting.start()
    assert kept_speeds(path, KEY, measuring) == Speeds(float32=7)
    child.join()
    waiting.join()
    assert measuring.times == 0


def test_one_that_never_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "PATIENCE", 0.05)
    path = tmp_path / "precision.json"

    def measure() -> Speeds:
        return kept_speeds(path, KEY, Measuring())  # as another process would, while this one holds the lock

    assert kept_speeds(path, KEY, measure).float32 == 101


@needs_jit
def test_the_real_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    figures = speeds_here()
    for name in PRODUCTS:
        assert (figures.of(name) or 0) > 0
    (kept,) = (tmp_path / "threadloom" / "precision").glob("*.json")
    assert read_speeds(kept, speeds_key()) == figures
    kept.unlink()
    assert speeds_here() is figures, "one process has one answer"
    begin = time.perf_counter()
    measure_speeds()
    assert time.perf_counter() - begin < 20  # 0.1 s on an idle machine with AVX-512


def _busy() -> None:
    end = time.perf_counter() + 1e-4
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("step", [0.0, 2e-4, 0.0156])
def test_a_coarse_clock_of_the_thread_does_no_harm(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """Clocks that stand still, or go on in steps longer than a call."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "thread_time", lambda: clock() // step * step if step else 5.0)
    monkeypatch.setattr(speeds, "PRODUCTS", dict.fromkeys(PRODUCTS, lambda: _busy))
    figures = measure_speeds()
    for name in PRODUCTS:
        seconds = speeds.OPERATIONS / 1e9 / (figures.of(name) or 0)
        assert 0.9e-4 < seconds < 1e-2


def test_the_product_is_of_a_micro_batch_and_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speeds.ROWS == ROWS_PER_MICRO_BATCH
    before = speeds_key()
    monkeypatch.setattr(speeds, "ROWS", 512)
    assert speeds_key() != before


def test_the_figures_are_frozen_and_are_rates() -> None:
    figures = Speeds(float32=1.0)
    with pytest.raises(AttributeError):
        figures.float32 = 3.0  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"float32": 0}, Speeds)
