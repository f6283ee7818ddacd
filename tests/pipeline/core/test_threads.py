"""Tests of the available cores, with files written here, and of the BLAS thread limit, with the loaded libraries."""

import os
from pathlib import Path

import numpy as np
import pytest

from threadloom.pipeline.core.threads import available_cores, blas_threads, cpu_quota, loaded_blas


def write_files(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a fake /proc and /sys below `root`; return `root`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_no_control_group_means_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("text", "quota"), [("250000 100000", 2.5), ("max 100000", None), ("50000 100000", 0.5)])
def test_version_2_quota(tmp_path: Path, text: str, quota: float | None) -> None:
    write_files(tmp_path, {"proc/self/cgroup": "0::/user/app\n", "sys/fs/cgroup/user/app/cpu.max": text + "\n"})
    assert cpu_quota(tmp_path) == quota


def test_the_smallest_quota_of_all_ancestors_applies(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
        },
    )
    assert cpu_quota(tmp_path) == 3.0


def test_in_a_container_the_root_group_applies(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"proc/self/cgroup": "0::/host/path/not/seen/here\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    )
    assert cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize(("microseconds", "quota"), [("150000", 1.5), ("-1", None)])
def test_version_1_quota(tmp_path: Path, microseconds: str, quota: float | None) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/x"
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/m\n3:cpu,cpuacct:/docker/x\n",
            f"{folder}/cpu.cfs_quota_us": microseconds + "\n",
            f"{folder}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_quota(tmp_path) == quota


def test_cores_are_limited_by_the_quota_rounded_down_but_at_least_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    write_files(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "270000 100000"})
    assert available_cores(tmp_path) == 2
    quota.write_text("20000 100000")
    assert available_cores(tmp_path) == 1
    quota.write_text("max 100000")
    assert available_cores(tmp_path) == 8


def test_without_affinity_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores(tmp_path) == 6


def test_blas_threads_are_limited_within_the_block_and_restored() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = [blas.threads for blas in loaded_blas()]
    if not before:
        pytest.skip("no BLAS known to threadpoolctl is loaded")
    with blas_threads(2) as inside:
        assert {blas.threads for blas in inside} <= {1, 2}  # 1 on a single core
        with blas_threads(1) as nested:
            assert {blas.threads for blas in nested} == {1}
        assert [blas.threads for blas in loaded_blas()] == [blas.threads for blas in inside]
    assert [blas.threads for blas in loaded_blas()] == before


def test_the_limit_is_restored_after_an_error() -> None:
    before = loaded_blas()
    with pytest.raises(KeyError), blas_threads(1):
        raise KeyError
    assert loaded_blas() == before


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_rejected(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1 BLAS thread"), blas_threads(limit):
        pass
