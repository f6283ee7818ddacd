"""The description of a machine, read from prepared system tables, and that of the real machine."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from threadloom.stages.machine import machine as module
from threadloom.stages.machine.machine import Machine, VectorWidth, cache_root, detect

XEON = Machine(
    cpu="Intel Xeon",
    microarchitecture="sapphirerapids",
    architecture="x86_64",
    system="Linux",
    logical_cores=2,
    physical_cores=2,
    features=("sse2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "amx-tile", "amx-bf16"),
    l1d=48 << 10,
    l2=2 << 20,
    l3=32 << 20,
    memory_total=24 << 30,
    memory_available=20 << 30,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /proc and /sys of two cores, with hardware threads 0 and 1 on the first."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU\n",
        "proc/meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   4194304 kB\n",
    }
    caches = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")]
    for cpu, core in ((0, 0), (1, 0), (2, 1), (3, 1)):
        base = f"sys/devices/system/cpu/cpu{cpu}"
        files |= {f"{base}/topology/physical_package_id": "0\n", f"{base}/topology/core_id": f"{core}\n"}
        for index, values in enumerate(caches):
            for name, value in zip(("level", "type", "size"), values, strict=True):
                files[f"{base}/cache/index{index}/{name}"] = value + "\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_tables_of_the_system_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    found = detect(root)
    assert found.cpu == "Some CPU @ 2.0GHz"
    assert (found.logical_cores, found.physical_cores) == (4, 2)
    assert (found.l1d, found.l2, found.l3) == (48 << 10, 1 << 20, 32 << 20)
    assert (found.memory_total, found.memory_available) == (8 << 30, 4 << 30)


def test_only_the_cores_of_this_process_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    found = detect(root)
    assert (found.logical_cores, found.physical_cores) == (2, 1)


def test_a_containers_memory_limit_counts(root: Path) -> None:
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text(f"{2 << 30}\n")
    (root / "sys/fs/cgroup/memory.current").write_text(f"{512 << 20}\n")
    found = detect(root)
    assert (found.memory_total, found.memory_available) == (2 << 30, 1536 << 20)
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert detect(root).memory_total == 8 << 30


def test_values_that_the_system_does_not_provide_are_none(tmp_path: Path) -> None:
    found = detect(tmp_path)
    assert (found.l1d, found.l2, found.l3, found.physical_cores) == (None, None, None, None)
    assert (found.memory_total, found.memory_available) == (None, None)
    assert found.cpu
    assert found.fingerprint()


def test_on_macos_the_values_are_those_of_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"hw.l1dcachesize": "65536", "hw.l2cachesize": "4194304", "hw.memsize": str(8 << 30), "hw.physicalcpu": "8"}

    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, table.get(command[-1], "") + "\n", "")

    def missing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(subprocess, "run", sysctl)
    found = detect(tmp_path)
    assert (found.l1d, found.l2, found.l3, found.physical_cores) == (65536, 4 << 20, None, 8)
    assert (found.memory_total, found.logical_cores) == (8 << 30, os.cpu_count())
    monkeypatch.setattr(subprocess, "run", missing)
    assert detect(tmp_path).memory_total is None


def test_a_cpu_that_llvm_cannot_query_has_no_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite.binding as llvm

    def refuse() -> None:
        raise RuntimeError("not on this platform")

    monkeypatch.setattr(llvm, "get_host_cpu_features", refuse)
    found = detect(tmp_path)
    assert found.features == ()
    assert found.vector_width is VectorWidth.PLAIN


def test_the_folder_of_figures_is_that_of_the_environment_or_of_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("THREADLOOM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert cache_root() == Path("/home/someone/.cache/threadloom")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_root() == module.NO_HOME / ".cache/threadloom"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "threadloom"
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path / "all"))
    assert cache_root() == tmp_path / "all"


def test_the_real_machine_is_plausible() -> None:
    found = detect()
    assert 1 <= (found.physical_cores or 1) <= found.logical_cores
    assert set(found.features) <= set(module.FEATURES)
    assert found == dataclasses.replace(detect(), memory_available=found.memory_available)


@pytest.mark.parametrize(
    ("features", "width"),
    [
        (XEON.features, VectorWidth.AVX512),
        (("sse2", "avx", "avx2", "fma", "avx512f"), VectorWidth.AVX2),
        (("sse2", "avx", "avx2"), VectorWidth.PLAIN),  # AVX2 requires fused multiply-add
        (("neon", "bf16"), VectorWidth.PLAIN),
        ((), VectorWidth.PLAIN),
    ],
)
def test_vector_width(features: tuple[str, ...], width: VectorWidth) -> None:
    assert dataclasses.replace(XEON, features=features).vector_width is width


def test_amx_needs_the_tiles_and_bfloat16() -> None:
    assert XEON.has_amx_bf16
    assert not dataclasses.replace(XEON, features=("amx-tile", "amx-int8")).has_amx_bf16


def test_the_fingerprint_omits_memory() -> None:
    assert XEON.fingerprint() == "sapphirerapids-2c-" + XEON.fingerprint()[-10:]
    assert dataclasses.replace(XEON, memory_available=1, memory_total=2).fingerprint() == XEON.fingerprint()
    for change in ({"l2": 1 << 20}, {"cpu": "Other"}, {"features": ("sse2",)}, {"logical_cores": 4}):
        assert dataclasses.replace(XEON, **change).fingerprint() != XEON.fingerprint()
