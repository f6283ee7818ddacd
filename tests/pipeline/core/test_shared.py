"""Tests of shared-memory pools in one process: sizes, lending and returning. test_processes has those across
processes."""

import gc
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import Cancelled, PipelineError, system_memory
from threadloom.pipeline.core import shared
from threadloom.pipeline.core.shared import PoolExhausted, SharedPool, anonymous_memory, map_memory, slot_of

pytestmark = pytest.mark.timeout(60)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("threadloom-")


def test_arrays_are_aligned_separate_and_sized() -> None:
    with SharedPool.of(3, (5, 7), np.float64, name="grid") as pool:
        arrays = [pool.empty((5, 7), np.float64) for _ in range(3)]
        for number, array in enumerate(arrays):
            assert array.shape == (5, 7)
            assert array.ctypes.data % 64 == 0
            array[:] = number
        assert [float(array.sum()) for array in arrays] == [0.0, 35.0, 70.0]
        assert str(pool) == "shared pool 'grid': 3 slots × 280 bytes = 12,288 bytes"


def test_a_slot_returns_when_its_last_view_is_deleted() -> None:
    with SharedPool(1, 64) as pool:
        array = pool.empty(16)
        view = array.reshape(4, 4)[1:, ::2].T
        del array
        with pytest.raises(PoolExhausted, match=r"no slot of pool 'shared' was returned within 0 s: all 1 are held"):
            pool.empty(16, timeout=0)
        assert pool.statistics().lent == 1
        del view
        assert pool.statistics().lent == 0
        again = pool.empty(16, timeout=0)
        assert pool.statistics().lent == 1
        del again


def test_a_slot_in_a_reference_cycle_returns_after_garbage_collection() -> None:
    with SharedPool(1, 64) as pool:
        cycle: list[object] = [pool.empty(16)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert pool.statistics().lent == 0


@pytest.mark.parametrize("look_up", [None, 0.001], ids=["GIL", "no GIL"])
def test_a_returned_slot_wakes_a_waiting_taker(monkeypatch: pytest.MonkeyPatch, look_up: float | None) -> None:
    monkeypatch.setattr("threadloom.pipeline.core.shared._LOOK_UP", look_up)
    with SharedPool(1, 64) as pool:
        held = [pool.empty(16)]
        got = []
        taker = threading.Thread(target=lambda: got.append(pool.empty(16).shape))
        taker.start()
        held.clear()
        taker.join(30)
        assert got == [(16,)]
        assert pool.statistics().most_lent == 1


@pytest.mark.parametrize("takers", [1, 3])
def test_abort_wakes_every_taker_and_reopen_makes_it_usable(takers: int) -> None:
    with SharedPool(1, 64) as pool:
        held = [pool.empty(16)]
        errors = []

        def take() -> None:
            with pytest.raises(Cancelled) as caught:
                pool.empty(16)
            errors.append(caught.value)

        threads = [threading.Thread(target=take) for _ in range(takers)]
        for thread in threads:
            thread.start()
        pool.abort()
        pool.abort()
        for thread in threads:
            thread.join(30)
        assert len(errors) == takers
        with pytest.raises(Cancelled, match="'shared' was aborted"):
            pool.empty(16)
        pool.reopen()
        held.clear()
        assert pool.empty(16, timeout=30).shape == (16,)


def test_an_array_that_does_not_fit_is_rejected_with_both_sizes() -> None:
    with SharedPool.of(2, (4, 4), name="tiles") as pool:
        with pytest.raises(
            PipelineError, match=r"\(4, 5\) and type float32 needs 80 bytes.*'tiles' have 64.*np.float32"
        ):
            pool.empty((4, 5))
        with pytest.raises(PipelineError, match="cannot hold arrays of object"):
            pool.empty(2, object)
        with pytest.raises(ValueError, match="non-negative sizes"):
            pool.empty((-1, 2))
        assert pool.statistics().lent == 0
    with pytest.raises(ValueError, match="at least 1 slot"):
        SharedPool(0, 64)


def test_memory_that_is_not_available_is_rejected_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    with pytest.raises(PipelineError, match=r"needs 1,125,899,906,842,624 bytes, but only [\d,]+ are available"):
        SharedPool(1, 1 << 50)

    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(PipelineError, match="cannot allocate 4,096 bytes"):
        SharedPool(1, 64)
    assert descriptors() == before


def test_the_limit_of_a_control_group_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"proc/meminfo": "MemAvailable: 4194304 kB", "proc/self/cgroup": "0::/job",
             "sys/fs/cgroup/job/memory.max": 1 << 20, "sys/fs/cgroup/job/memory.current": 1 << 19}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(shared, "system_memory", partial(system_memory, tmp_path))
    SharedPool(1, 1 << 18).close()
    with pytest.raises(PipelineError, match="only 524,288 are available to this process"):
        SharedPool(2, 1 << 19)


def test_close_frees_descriptor_and_memory_and_leaves_arrays_alive() -> None:
    gc.collect()  # frees reference cycles left by earlier tests
    before, mapped, names = descriptors(), mappings(), os.listdir("/dev/shm")
    pool = SharedPool.of(2, (16,))
    assert (descriptors(), mappings(), os.listdir("/dev/shm")) == (
        before + 2,
        mapped + 1,
        names,
    )  # the mapping holds a descriptor too
    array = pool.empty(16)
    array[:] = 3
    pool.close()
    pool.close()
    assert descriptors() == before + 1
    with pytest.raises(PipelineError, match="'shared' is closed"):
        pool.empty(16)
    del pool
    assert float(array.sum()) == 48.0
    del array
    assert (descriptors(), mappings()) == (before, mapped)


def test_a_deleted_pool_releases_everything() -> None:
    gc.collect()
    before, mapped = descriptors(), mappings()
    SharedPool.of(2, (16,)).empty(16)
    assert (descriptors(), mappings()) == (before, mapped)


def test_memory_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    names = os.listdir("/dev/shm")
    monkeypatch.delattr(os, "memfd_create")
    fd = anonymous_memory("old", 8192)
    try:
        assert os.listdir("/dev/shm") == names
        one, two = map_memory(fd, 8192), map_memory(fd, 8192)
    finally:
        os.close(fd)
    one[5] = 9
    assert two[5] == 9


def test_memory_without_proc_and_posix_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, *_: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.delattr("mmap.MAP_POPULATE", raising=False)
    fd = anonymous_memory("plain", 4096)
    try:
        assert not map_memory(fd, 4096).any()
    finally:
        os.close(fd)


def test_without_any_shared_memory_the_remedy_is_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setitem(sys.modules, "_posixshmem", None)
    with pytest.raises(PipelineError, match="run these stages on threads"):
        anonymous_memory("none", 64)


def test_slot_of_recognises_memory_of_a_pool() -> None:
    with SharedPool(1, 64) as pool:
        array = pool.copy(np.arange(16, dtype=np.float32))
        slot = slot_of(array[3:])
        assert slot is not None
        assert slot.pool is pool
        assert slot_of(np.arange(16)[3:]) is None
        assert slot_of(np.frombuffer(b"abcd", np.uint8)) is None
        with pytest.raises(TypeError):
            slot.view((17,), np.float32)
        with pytest.raises(ValueError, match="offset of at least 0 bytes"):
            slot.view((2,), np.float32, offset=-4)
        with pytest.raises(ValueError, match="strides"):
            slot.view((2,), np.float32, offset=0, strides=(-4,))


def test_a_handle_of_an_earlier_loan_is_rejected() -> None:
    with SharedPool(1, 64) as pool:
        slot = pool.lend()
        number, serial = slot.number, slot.serial
        assert pool.held(number, serial) is slot
        del slot
        with pytest.raises(PipelineError, match="belonged to an earlier item"):
            pool.held(number, serial)
        later = pool.lend()
        with pytest.raises(PipelineError, match="belonged to an earlier item"):
            pool.held(number, serial)
        del later


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=40))
def test_lent_and_free_slots_always_add_up(steps: list[int | None]) -> None:
    with SharedPool(3, 64) as pool:
        held: list[np.ndarray[Any, Any]] = []
        for step in steps:
            if step is None:
                try:
                    held.append(pool.empty(16, timeout=0))
                except PoolExhausted:
                    assert len(held) == 3
            elif held:
                held.pop(step % len(held))
            addresses = {array.ctypes.data for array in held}
            assert len(addresses) == len(held) == pool.statistics().lent <= 3
        held.clear()
        assert pool.statistics().lent == 0
