"""The resources that a process holds, for leak checks: threads, child processes, descriptors, shared memory.

Assumption: nothing else in this process starts threads or opens files while a run is observed. Shared memory is found
by its files, which other processes of this machine create as well: a segment whose name contains the id of another
running process is not counted.
"""

import gc
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

LIBRARY_CHILDREN = ("resource_tracker", "forkserver")
"""Parts of the command lines of processes that `multiprocessing` starts once and keeps."""


@dataclass(frozen=True)
class ResourceSnapshot:
    """The resources held at one moment."""

    threads: frozenset[tuple[int, str]]
    """Ident and name of each living thread."""
    children: frozenset[tuple[int, str]]
    """Process id and command line of each child process, zombies included."""
    descriptors: frozenset[tuple[int, str]]
    """Number and target of each open file descriptor."""
    segments: frozenset[str]
    """Names of the shared-memory segments of this user."""

    @classmethod
    def now(cls) -> "ResourceSnapshot":
        """Return the resources held now."""
        return cls(
            frozenset((thread.ident or 0, thread.name) for thread in threading.enumerate()),
            frozenset(_children()),
            frozenset(_descriptors()),
            frozenset(_segments()),
        )

    def since(self, before: "ResourceSnapshot") -> dict[str, list[str]]:
        """Return the resources in this snapshot that are not in `before`, by sort; empty if there are none.

        A segment that another process maps and this one does not belongs to the other process.
        """
        added = {
            "thread": sorted(name for _, name in self.threads - before.threads),
            "child process": sorted(f"{pid}: {line}" for pid, line in self.children - before.children),
            "file descriptor": sorted(f"{fd}: {target}" for fd, target in self.descriptors - before.descriptors),
            "shared-memory segment": sorted(_without_those_of_others(self.segments - before.segments)),
        }
        return {sort: names for sort, names in added.items() if names}


def left_behind(before: ResourceSnapshot, grace: float = 1.0, *, collect: bool = False) -> dict[str, list[str]]:
    """Return the resources acquired since `before` that are still held after at most `grace` seconds.

    With `collect`, objects in reference cycles may hold them: a consumer may create one after its run has ended.
    """
    deadline = time.monotonic() + grace
    while (left := ResourceSnapshot.now().since(before)) and time.monotonic() < deadline:
        if collect:
            gc.collect()
        time.sleep(0.002)  # a thread that has been joined may still execute its last instructions
    return left


def _children() -> list[tuple[int, str]]:
    found = []
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.exists() else ():
        try:
            pids = (task / "children").read_text("utf-8", "replace").split()
        except OSError:
            continue  # the thread ended during the listing
        for pid in pids:
            try:
                line = Path("/proc", pid, "cmdline").read_text("utf-8", "replace").replace("\0", " ").strip()
            except OSError:
                continue
            if not any(part in line for part in LIBRARY_CHILDREN):
                found.append((int(pid), line or "(a zombie)"))
    return found


def _descriptors() -> list[tuple[int, str]]:
    folder = next((name for name in ("/proc/self/fd", "/dev/fd") if Path(name).is_dir()), None)
    found: list[tuple[int, str]] = []
    kept = _library_descriptors()
    for name in os.listdir(folder) if folder else ():
        if int(name) in kept:
            continue
        try:
            found.append((int(name), str(Path(folder or "", name).readlink())))
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def _library_descriptors() -> set[int | None]:
    """Return the pipes to the resource trackers, which the first spawned process creates and which stay open."""
    modules = (sys.modules.get(f"{name}.resource_tracker") for name in ("multiprocessing", "multiprocess"))
    return {getattr(getattr(module, "_resource_tracker", None), "_fd", None) for module in modules}


def _segments() -> list[str]:
    found = []
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
        try:
            if path.stat().st_uid == os.getuid() and _may_be_own(path.name):
                found.append(path.name)
        except OSError:
            continue  # unlinked during the listing
    return found


def _may_be_own(name: str) -> bool:
    """Return False if the name of a segment contains the id of another running process and not that of this one."""
    numbers = [int(part) for part in name.replace("-", "_").replace(".", "_").split("_") if part.isdigit()]
    others = [number for number in numbers if number != os.getpid() and Path("/proc", str(number)).exists()]
    return not others or os.getpid() in numbers


def _without_those_of_others(names: frozenset[str]) -> set[str]:
    """Return `names` without the segments that other processes map and this one does not.

    The random name of a semaphore of `multiprocessing` does not tell its process.
    """
    if not names:
        return set()
    others: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != str(os.getpid()):
            others |= _mapped(process)
    return set(names) - (others - _mapped(Path("/proc/self")))


def _mapped(process: Path) -> set[str]:
    """Return the names of the shared-memory segments that a process maps; empty if it has ended or is not ours."""
    prefix = f"{SHARED_MEMORY}/"
    try:
        lines = (process / "maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    return {line.partition(prefix)[2].removesuffix(" (deleted)") for line in lines if prefix in line}
