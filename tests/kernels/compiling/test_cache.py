"""Compiled kernels on disk: entries written by several processes at once, or compiled from other sources."""

import errno
import itertools
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from numba.core.caching import FunctionCache

from threadloom.kernels.compiling import cache
from threadloom.kernels.compiling.cache import CacheFile
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.backend import gemm

pytestmark = pytest.mark.timeout(240)

KEYS = ("C", "A"), ("F",), ("C",)


def entries(folder: Path, stamp: str = "today") -> CacheFile:
    return CacheFile(str(folder), "sums.total-3.py311", stamp)


def test_every_key_has_an_entry(tmp_path: Path) -> None:
    file = entries(tmp_path)
    for key in KEYS:
        file.save(key, f"code of {key}")
    assert [entries(tmp_path).load(key) for key in KEYS] == [f"code of {key}" for key in KEYS]
    assert file.load(("D",)) is None
    file.flush()
    assert list(tmp_path.iterdir()) == []


def test_code_of_other_sources_is_not_loaded_and_removed_by_the_next_save(tmp_path: Path) -> None:
    entries(tmp_path, "other sources").save(KEYS[0], "old code")
    (tmp_path / "sums.total-3.py311.nbi").write_bytes(b"Numba's own")
    (tmp_path / "sums.total-3.py311.1.nbc").write_bytes(b"Numba's own")
    other = CacheFile(str(tmp_path), "sums.total-31.py311", "other sources")
    other.save(KEYS[0], "another kernel's")
    assert entries(tmp_path).load(KEYS[0]) is None
    entries(tmp_path).save(KEYS[1], "today's")
    assert entries(tmp_path, "other sources").load(KEYS[0]) is None
    assert entries(tmp_path).load(KEYS[1]) == "today's"
    assert other.load(KEYS[0]) == "another kernel's"
    assert len(list(tmp_path.iterdir())) == 2


@given(st.binary(max_size=60) | st.sampled_from([b"cno.such\nthing\n.", b"\x80\x05."]))
def test_a_corrupt_entry_is_ignored(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = entries(tmp_path_factory.mktemp("spoilt"))
    file.save(KEYS[0], "whole")
    (path,) = Path(file._cache_path).iterdir()
    path.write_bytes(content)
    assert file.load(KEYS[0]) is None


def test_a_failed_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    file = entries(tmp_path)
    file.save(KEYS[0], "whole")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="full"):
        file.save(KEYS[0], "other")
    assert file.load(KEYS[0]) == "whole"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AABB"))))
def test_concurrent_saves_do_not_mix_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    """All orders of the steps (write a temporary file, rename it), for two signatures and for one."""
    turns = {place: threading.Event() for place in range(len(order) + 1)}
    places = {name: iter([place for place, whose in enumerate(order) if whose == name]) for name in "AB"}
    turns[0].set()

    def in_turn(step: Any) -> Any:
        def stepping(*arguments: Any) -> Any:
            place = next(places[threading.current_thread().name])
            assert turns[place].wait(60)
            try:
                return step(*arguments)
            finally:
                turns[place + 1].set()

        return stepping

    monkeypatch.setattr(CacheFile, "_dump", in_turn(CacheFile._dump))
    monkeypatch.setattr(os, "replace", in_turn(os.replace))
    threads = [
        threading.Thread(target=entries(tmp_path).save, args=((name, order[0]), f"code of {name}"), name=name)
        for name in "AB"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entries(tmp_path).load((name, order[0])) for name in "AB"] == ["code of A", "code of B"]


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")
class TestKernels:
    def test_a_cache_that_cannot_be_written_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a full disk; the kernel has been compiled already, and runs."""

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        kernel: Any = gemm
        monkeypatch.setattr(CacheFile, "save", full)
        monkeypatch.setattr(FunctionCache, "save_overload", lambda self, *_: self._cache_file.save((), None))

        def save_twice() -> None:
            for _ in range(2):
                with warnings.catch_warnings():  # as Numba does while it compiles
                    kernel._cache.save_overload((), None)

        cache._warn_once.cache_clear()
        try:
            with pytest.warns(RuntimeWarning, match=r"No space left.*THREADLOOM_CACHE") as said:
                save_twice()
            assert len(said) == 1
            assert cache.has_failed_to_save()
        finally:
            cache._warn_once.cache_clear()

    def test_kernels_use_this_cache(self) -> None:
        kernel: Any = gemm
        assert isinstance(kernel._cache._cache_file, CacheFile)

    def test_processes_compile_one_kernel_for_several_signatures_at_once(self, tmp_path: Path) -> None:
        """If the cache mixed them up, the next process would read a strided array as if it were contiguous."""
        (tmp_path / "sums.py").write_text(SOURCE, "utf-8")
        for _ in range(2):
            running = [
                subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), *order], stdout=subprocess.PIPE, text=True)
                for order in (("C", "A", "F"), ("F", "A", "C"))
            ]
            said = [process.communicate(timeout=200)[0] for process in running]
            assert said == ["66.0 66.0 66.0\n"] * 2
        assert len(list(tmp_path.rglob("*.nbc"))) == 3
        loaded = subprocess.run(
            [sys.executable, "-c", RUN + "assert not sums.total.stats.cache_misses", str(tmp_path), "C", "A", "F"],
            capture_output=True, text=True, timeout=200, check=True,
        )  # fmt: skip
        assert loaded.stdout == "66.0 66.0 66.0\n"


SOURCE = """
import numpy as np
from threadloom.kernels.compiling.jit import jit_kernel

@jit_kernel
def total(x):
    s = np.float32(0.0)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            s += x[i, j]
    return s
"""
RUN = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import sums
x = np.arange(12, dtype=np.float32).reshape(3, 4)
spread = np.zeros((3, 8), np.float32)
spread[:, ::2] = x
arrays = {"C": x, "A": spread[:, ::2], "F": np.asfortranarray(x)}
print(*(sums.total(arrays[order]) for order in sys.argv[2:]))
"""
