"""The number of threads by cores, control group and environment, and that it does not affect the weights' settings."""

import os
from pathlib import Path

import pytest

from threadloom.pipeline import available_cores
from threadloom.stages.machine import thread_limit
from threadloom.stages.resolve import load_config, resolve, trajectory
from threadloom.stages.resolve.loading import apply_overrides

CORES = 16


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("environment", "count", "reason"),
    [
        ({}, CORES, "the cores of this machine"),
        ({"OMP_NUM_THREADS": "4"}, 4, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, 4, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "64"}, CORES, "the cores of this machine"),
        ({"OMP_NUM_THREADS": "0"}, CORES, "the cores of this machine"),
        ({"OMP_NUM_THREADS": "many"}, CORES, "the cores of this machine"),
        ({"OMP_NUM_THREADS": "4", "SLURM_CPUS_PER_TASK": "3"}, 3, "SLURM_CPUS_PER_TASK"),
    ],
)
def test_the_smallest_limit_counts(environment: dict[str, str], count: int, reason: str, tmp_path: Path) -> None:
    found = thread_limit(environment, tmp_path)
    assert (found.count, found.reason) == (count, reason)


@pytest.mark.usefixtures("cores")
def test_the_quota_of_any_enclosing_group_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    outer = tmp_path / "sys/fs/cgroup/job"
    (outer / "step").mkdir(parents=True)
    (outer / "cpu.max").write_text("300000 100000\n")
    (outer / "step/cpu.max").write_text("max 100000\n")
    found = thread_limit({}, tmp_path)
    assert (found.count, found.reason) == (3, "the CPU quota of the control group")


def test_the_affinity_of_the_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    assert thread_limit({}, tmp_path).reason == "the CPU affinity of this process"
    assert thread_limit({}, tmp_path).count == available_cores(tmp_path) == 2


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_the_number_of_threads_does_not_affect_the_trajectory(threads: int) -> None:
    config = load_config("nanogpt-cpu")
    config = apply_overrides(config, ["model.vocab_size=65"])
    whole = resolve(config, CORES)
    by_caller = resolve(config, CORES, threads=threads)
    by_setting = resolve(apply_overrides(config, [f"threads.total={threads}"]), CORES, threads=2)
    assert by_caller.threads.forward == by_setting.threads.forward == threads
    assert by_caller.threads.backward <= threads
    assert trajectory(by_caller) == trajectory(by_setting) == trajectory(whole)
