"""The memory of this process: that of the system, of its control groups, and of its limit on address space.

A limit of a control group holds for all groups within it, so every ancestor counts. The page cache of files is counted
as used by a group, but the kernel reclaims it before it ends a process, so it counts as available here, as it does in
``MemAvailable`` for the system.
"""

import re
from pathlib import Path

from threadloom.pipeline.core.control_groups import control_groups, read_lines

RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Fields of ``memory.stat`` that the kernel frees on demand; in version 1 with the prefix ``total_``, of all groups
within. Files in memory (tmpfs) are not among them."""


def system_memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return total and available bytes; None if the system does not provide the value.

    Both are those of the system, limited by the control groups; the available bytes also by ``ulimit -v``. `root` is
    the directory that contains proc and sys.
    """
    table = _fields(root / "proc/meminfo", r"^(\w+):\s+(\d+) kB$")
    total, available = (table[name] << 10 if name in table else None for name in ("MemTotal", "MemAvailable"))
    for group in memory_groups(root):
        total = _least(total, _limit(group))  # version 1 writes "no limit" as 2^63
        available = _least(available, group_available(group))
    return total, _least(available, address_space_left(root))


def memory_groups(root: Path) -> list[Path]:
    """Return the folders of this process's control group of memory and of its ancestors, in both versions."""
    trees = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
    roots = (
        [] if read_lines(root / "proc/self/cgroup") else trees
    )  # without /proc the roots are the group, as in a container
    folders = [*control_groups(root, "memory"), *roots, root / "sys/fs/cgroup/memory"]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def group_available(group: Path) -> int | None:
    """Return the bytes that a control group may still use; None without a limit."""
    limit = _limit(group)
    used = _number(group / "memory.current", group / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    fields = _fields(group / "memory.stat", r"^(\w+) (\d+)$")
    reclaimable = sum(fields.get(f"total_{name}", fields.get(name, 0)) for name in RECLAIMABLE)
    return max(0, min(limit, limit - used + reclaimable))


def address_space_left(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still map under ``ulimit -v``; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = " ".join(read_lines(root / "proc/self/statm")).split()
    return max(0, limit - (int(pages[0]) * resource.getpagesize() if pages else 0))


def _limit(group: Path) -> int | None:
    """Return the limit of a group. Above ``memory.high`` its processes are slowed down until they hardly proceed."""
    most = _number(group / "memory.max", group / "memory.limit_in_bytes")
    return _least(most, _number(group / "memory.high"))


def _number(*files: Path) -> int | None:
    """Return the number in the first of the files that has a line; None for "max"."""
    for file in files:
        for line in read_lines(file):
            return int(line) if line.strip().isdigit() else None
    return None


def _fields(file: Path, pattern: str) -> dict[str, int]:
    """Return name → number of the lines of a file that match."""
    return {found[1]: int(found[2]) for line in read_lines(file) if (found := re.match(pattern, line))}


def _least(*numbers: int | None) -> int | None:
    """Return the smallest of the known numbers, or None if none is known."""
    return min((number for number in numbers if number is not None), default=None)
