"""The cores available to this process, and the number of BLAS threads.

Assumptions: a limit on BLAS threads applies to the whole process, not to one Python thread (OpenBLAS, MKL and BLIS keep
one setting each), so it should enclose a whole run: entered before its stages start, left after they have ended. It
affects only libraries loaded at that time: import the kernels first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import threadpoolctl

from threadloom.pipeline.core.control_groups import control_groups, read_lines


@dataclass(frozen=True)
class BlasThreads:
    """A loaded BLAS library and its number of threads."""

    library: str  # "openblas", "mkl", "blis" or "accelerate"
    version: str | None  # None if the library does not report it
    architecture: str | None  # its name of the kernels it selected for this CPU ("Haswell", "SkylakeX")
    threads: int  # threads per call at present
    path: str  # of the library file; NumPy and SciPy each bundle one


def loaded_blas() -> tuple[BlasThreads, ...]:
    """Return the BLAS libraries loaded by this process, with their present numbers of threads."""
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
    """Limit BLAS to `limit` threads per call, in the whole process, until the block ends.

    Yields the loaded libraries with the threads that each actually uses, which may differ from `limit` for a library
    that cannot be limited. Do not overlap such blocks in different threads: the last to exit determines the setting.
    """
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1 BLAS thread, got {limit}")
    with threadpoolctl.threadpool_limits(limits=limit, user_api="blas"):
        yield loaded_blas()


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores available to this process: its CPU affinity, at most the container's CPU quota, >= 1.

    A quota is rounded down (2.5 cores count as 2): a third thread would be throttled, and with it the stages that wait
    for it. `root` is the directory that contains proc and sys.
    """
    cores, quota = affinity_cores(), cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def affinity_cores() -> int:
    """Return the number of cores in the CPU affinity of this process: all cores on macOS and Windows."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process's control groups in cores (such as 2.5), or None if there is no limit."""
    quotas = [_group_quota(group) for group in control_groups(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_quota(group: Path) -> float | None:
    fields = [field for line in read_lines(group / "cpu.max") for field in line.split()]
    if not fields:
        fields = read_lines(group / "cpu.cfs_quota_us") + read_lines(group / "cpu.cfs_period_us")
    try:
        quota, period = (float(field) for field in fields)
    except ValueError:  # "max 100000" means no limit; the file may also be missing
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1 means no limit in version 1
