"""Memory of control groups, from made-up trees of both versions."""

from pathlib import Path

import pytest

from threadloom.pipeline.core.system_memory import memory_groups, system_memory

pytestmark = pytest.mark.timeout(30)

GIB, MIB = 1 << 30, 1 << 20
MEMINFO = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"
NO_LIMIT = 9223372036854771712
"""The limit that version 1 writes if there is none."""


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def version_2(path: str, **content: object) -> dict[str, object]:
    return {f"sys/fs/cgroup{path}/memory.{name}": value for name, value in content.items()}


def version_1(path: str, limit: int, used: int, stat: str = "") -> dict[str, object]:
    folder = f"sys/fs/cgroup/memory{path}/memory"
    return {f"{folder}.limit_in_bytes": limit, f"{folder}.usage_in_bytes": used, f"{folder}.stat": stat}


def test_without_groups_the_system_counts(tmp_path: Path) -> None:
    assert system_memory(tree(tmp_path, {})) == (8 * GIB, 4 * GIB)
    assert system_memory(tmp_path / "nowhere") == (None, None)


@pytest.mark.parametrize("limited", ["", "/slurm", "/slurm/job_7", "/slurm/job_7/step_0"])
def test_the_limit_of_every_ancestor_counts(tmp_path: Path, limited: str) -> None:
    files: dict[str, object] = {"proc/self/cgroup": "0::/slurm/job_7/step_0"}
    for path in ("/slurm", "/slurm/job_7", "/slurm/job_7/step_0"):
        files |= version_2(path, max="max", current=MIB)
    files |= version_2(limited, max=2 * GIB, current=GIB // 2)
    assert system_memory(tree(tmp_path, files)) == (2 * GIB, 3 * GIB // 2)


def test_the_group_with_the_least_left_counts(tmp_path: Path) -> None:
    files: dict[str, object] = {"proc/self/cgroup": "0::/a/b"}
    files |= version_2("/a", max=3 * GIB, current=3 * GIB - MIB)  # others in it have used it up
    files |= version_2("/a/b", max=2 * GIB, current=MIB)
    assert system_memory(tree(tmp_path, files)) == (2 * GIB, MIB)


def test_the_page_cache_counts_as_available(tmp_path: Path) -> None:
    stat = f"anon {GIB // 4}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\nshmem 0"
    files = {"proc/self/cgroup": "0::/job"} | version_2("/job", max=GIB, current=GIB, stat=stat)
    assert system_memory(tree(tmp_path, files)) == (GIB, 3 * GIB // 4)


def test_files_in_memory_do_not_count_as_available(tmp_path: Path) -> None:
    stat = f"file {GIB}\nshmem {GIB}\ninactive_anon {GIB}\ninactive_file 0"
    files = {"proc/self/cgroup": "0::/job"} | version_2("/job", max=GIB, current=GIB, stat=stat)
    assert system_memory(tree(tmp_path, files)) == (GIB, 0)


def test_the_high_limit_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job"} | version_2("/job", max=2 * GIB, high=GIB, current=MIB)
    assert system_memory(tree(tmp_path, files)) == (GIB, GIB - MIB)


def test_version_1(tmp_path: Path) -> None:
    files: dict[str, object] = {"proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x"}
    files |= version_1("", NO_LIMIT, 6 * GIB)
    files |= version_1("/docker", 2 * GIB, GIB)
    files |= version_1("/docker/abc", NO_LIMIT, GIB, f"inactive_file 1\ntotal_inactive_file {GIB // 2}")
    assert system_memory(tree(tmp_path, files)) == (2 * GIB, GIB)
    files |= version_1("/docker", 2 * GIB, GIB, f"inactive_file 1\ntotal_inactive_file {GIB // 2}")
    assert system_memory(tree(tmp_path, files)) == (2 * GIB, 3 * GIB // 2)


def test_in_a_container_the_path_is_the_hosts_and_the_root_is_the_group(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/docker/abc/../../x"} | version_2("", max=GIB, current=MIB)
    root = tree(tmp_path, files)
    assert system_memory(root) == (GIB, GIB - MIB)
    assert memory_groups(root) == [root / "sys/fs/cgroup"]
