"""How many threads there may be: the cores that this process has, and the limit on BLAS's own threads.

Assumptions: a limit on BLAS threads holds for the whole process and not for one Python thread (OpenBLAS, MKL and BLIS
keep one setting each), so it belongs around a whole run, entered before its stages start and left after they ended.
Only libraries that are loaded when it is entered are limited: import the kernels first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import threadpoolctl


@dataclass(frozen=True)
class BlasThreads:
    """The threads of one loaded BLAS library."""

    library: str  # "openblas", "mkl", "blis" or "accelerate"
    version: str | None  # None where the library does not tell
    architecture: str | None  # the kernels that it picked for this CPU, in its own words ("Haswell", "SkylakeX")
    threads: int  # how many it uses for one call at this moment
    path: str  # file it was loaded from: NumPy and SciPy each bring one of their own


def loaded_blas() -> tuple[BlasThreads, ...]:
    """Return every BLAS library that this process has loaded, with the threads that it uses now."""
    return tuple(
        BlasThreads(
            library=pool["internal_api"],
            version=pool["version"],
            architecture=pool.get("architecture"),
            threads=pool["num_threads"],
            path=pool["filepath"],
        )
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    )


@contextmanager
def blas_threads(limit: int) -> Iterator[tuple[BlasThreads, ...]]:
    """Limit BLAS to `limit` threads a call, in the whole process, until the block ends.

    Yields what is loaded and the threads that each library then really uses: one that cannot be limited shows its own
    number. Do not nest two of these in different threads: the one that leaves last decides what stays.
    """
    if limit < 1:
        raise ValueError(f"BLAS needs at least 1 thread, got {limit}; 1 and threads of the stages' own do best")
    with threadpoolctl.threadpool_limits(limits=limit, user_api="blas"):
        yield loaded_blas()


def available_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: its CPU affinity, cut to a container's CPU quota, at least 1.

    A quota of 2.5 cores counts as 2: a third thread would be throttled, and with it the stages that wait for it. `root`
    is where /proc and /sys are looked for.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        cores = os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores that the control groups of this process allow it (2.5 for instance), or None without a limit."""
    quotas: list[float | None] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, in one tree
            folders = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):  # version 1
            folders = [root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup" / controllers]
        else:
            continue
        # Every group above this one limits it too. Within a container the path may be the host's and not exist here;
        # the root of the tree is then the container's own group.
        group = Path(path.lstrip("/"))
        for folder in folders:
            quotas.extend(_group_quota(folder / part) for part in (group, *group.parents))
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_quota(group: Path) -> float | None:
    fields = [field for line in _lines(group / "cpu.max") for field in line.split()]
    if not fields:
        fields = _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
    try:
        quota, period = (float(field) for field in fields)
    except ValueError:  # "max 100000": no limit; or not there
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 says -1 for no limit


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
