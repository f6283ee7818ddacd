"""The number of threads that stages may use: the cores of this process, or fewer by the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from threadloom.pipeline import affinity_cores, available_cores

VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
"""Variables that limit the threads; the smallest value counts."""


@dataclass(frozen=True)
class ThreadLimit:
    """A number of threads, and where it comes from."""

    count: int
    reason: str


def thread_limit(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> ThreadLimit:
    """Return the limit of the cores, of the control group's CPU quota and of `VARIABLES`, the smallest of them.

    Values of variables that are not positive numbers are ignored. `root` is the directory that contains proc and sys.
    """
    allowed, cores = affinity_cores(), available_cores(root)
    reason = "the cores of this machine"
    if cores < allowed:
        reason = "the CPU quota of the control group"
    elif allowed < (os.cpu_count() or 1):
        reason = "the CPU affinity of this process"
    limits = [ThreadLimit(cores, reason)]
    for name in VARIABLES:
        first = environment.get(name, "").partition(",")[0].strip()  # OMP_NUM_THREADS may list nested levels
        if first.isdecimal() and 0 < int(first) < cores:
            limits.append(ThreadLimit(int(first), name))
    return min(limits, key=lambda limit: limit.count)
