"""The memory of this process: that of the system, of its control groups, and of its limit on address space.

A limit of a control group holds for all groups within it, so every ancestor counts. The page cache of files is counted
as used by a group, but the kernel reclaims it before it ends a process, so it counts as available here, as it does in
``MemAvailable`` for the system.
"""

import re
from pathlib import Path

from threadloom.pipeline import control_groups

RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Fields of ``memory.stat`` that the kernel frees on demand; in version 1 with the prefix ``total_``, of all groups
within. Files in memory (tmpfs) are not among them."""


def system_memory(root: Path) -> tuple[int | None, int | None]:
    """Return total and available bytes from ``proc/meminfo`` and the control groups below `root`; None if unknown."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(root / "proc/meminfo") or "", re.MULTILINE))
    total = int(table["MemTotal"]) << 10 if "MemTotal" in table else None
    available = int(table["MemAvailable"]) << 10 if "MemAvailable" in table else None
    for group in memory_groups(root):
        limit, left = _limit(group), group_available(group)
        if limit is not None and (total is None or limit < total):  # version 1 writes "no limit" as 2^63
            total = limit
        if left is not None and (available is None or left < available):
            available = left
    return total, available


def memory_groups(root: Path) -> list[Path]:
    """Return the folders of this process's control group of memory and of its ancestors, in both versions."""
    # Without /proc the roots of the trees are the group, as in a container.
    roots = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"] if not _read(root / "proc/self/cgroup") else []
    folders = [*control_groups(root, "memory"), *roots, root / "sys/fs/cgroup/memory"]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def group_available(group: Path) -> int | None:
    """Return the bytes that a control group may still use; None without a limit."""
    limit = _limit(group)
    used = _number(group / "memory.current", group / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    found = re.findall(r"^(\w+) (\d+)$", _read(group / "memory.stat") or "", re.MULTILINE)
    fields = {name: int(number) for name, number in found}
    reclaimable = sum(fields.get(f"total_{name}", fields.get(name, 0)) for name in RECLAIMABLE)
    return max(0, min(limit, limit - used + reclaimable))


def _limit(group: Path) -> int | None:
    """Return the limit of a group. Above ``memory.high`` its processes are slowed down until they hardly proceed."""
    limits = [_number(group / "memory.max", group / "memory.limit_in_bytes"), _number(group / "memory.high")]
    return min((limit for limit in limits if limit is not None), default=None)


def _number(*files: Path) -> int | None:
    """Return the number in the first of the files that exists; None for "max"."""
    for file in files:
        text = _read(file)
        if text is not None:
            return int(text) if text.isdigit() else None
    return None


def address_space_left(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still map under ``ulimit -v``; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = (_read(root / "proc/self/statm") or "").split()
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - (int(pages[0]) * resource.getpagesize() if pages else 0))


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return None
