"""What a process holds, so that what a run leaves behind can be told: threads, children, descriptors, shared memory.

Assumption: nothing else in this process starts threads or opens files while a run is observed. Shared memory is looked
for by file, and other processes of this machine make such files too; only those that carry one of the `prefixes` and
that no process but ours made are counted where the name tells.
"""

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
    """What is held at one moment: in each set, what to call it in a report."""

    threads: frozenset[tuple[int, str]]
    """Ident and name of each living thread."""
    children: frozenset[tuple[int, str]]
    """Process number and command line of each child, dead but unreaped ones included."""
    descriptors: frozenset[tuple[int, str]]
    """Number and target of each open file descriptor."""
    segments: frozenset[str]
    """Names of the shared-memory segments of this user."""

    @classmethod
    def now(cls) -> "ResourceSnapshot":
        """Look."""
        return cls(
            frozenset((thread.ident or 0, thread.name) for thread in threading.enumerate()),
            frozenset(_children()),
            frozenset(_descriptors()),
            frozenset(_segments()),
        )

    def since(self, before: "ResourceSnapshot") -> dict[str, list[str]]:
        """Return what is held here and was not before, by sort; empty if nothing is."""
        more = {
            "thread": sorted(name for _, name in self.threads - before.threads),
            "child process": sorted(f"{pid}: {line}" for pid, line in self.children - before.children),
            "file descriptor": sorted(f"{fd}: {target}" for fd, target in self.descriptors - before.descriptors),
            "shared-memory segment": sorted(self.segments - before.segments),
        }
        return {sort: names for sort, names in more.items() if names}


def left_behind(before: ResourceSnapshot, grace: float = 1.0) -> dict[str, list[str]]:
    """Return what is held now and was not before, and still is when `grace` seconds have passed."""
    deadline = time.monotonic() + grace
    while (more := ResourceSnapshot.now().since(before)) and time.monotonic() < deadline:
        time.sleep(0.002)  # the last instructions of a thread that has been joined by its own account
    return more


def _children() -> list[tuple[int, str]]:
    found = []
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.exists() else ():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue  # a thread that ended while we looked
        for pid in pids:
            try:
                line = Path("/proc", pid, "cmdline").read_text().replace("\0", " ").strip()
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
    """Return the pipes to the resource trackers, which the first spawned process starts and which stay."""
    modules = (sys.modules.get(f"{name}.resource_tracker") for name in ("multiprocessing", "multiprocess"))
    return {getattr(getattr(module, "_resource_tracker", None), "_fd", None) for module in modules}


def _segments() -> list[str]:
    found = []
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.is_dir() else ():
        try:
            if path.stat().st_uid == os.getuid() and _is_ours(path.name):
                found.append(path.name)
        except OSError:
            continue  # unlinked while we looked
    return found


def _is_ours(name: str) -> bool:
    """Tell a segment of this process, where its name has a process number in it, from those of others."""
    numbers = [int(part) for part in name.replace("-", "_").replace(".", "_").split("_") if part.isdigit()]
    others = [number for number in numbers if number != os.getpid() and Path("/proc", str(number)).exists()]
    return not others or os.getpid() in numbers
