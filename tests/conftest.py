"""Rules for every test: one BLAS thread, no window, no leaked thread or process, the same hypothesis examples in CI.

The environment is set before anything imports NumPy, because a BLAS reads it when it is loaded. Child processes inherit
it.
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.distribution import rank_of, unit_of

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Tests send these signals; jobs in the background and under nohup are started with one or both of them ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile(
    "default", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

GRACE = 8.0
"""Seconds for threads and children to end after a test: one by guarantee 4, and more for a loaded machine."""

LIBRARY_THREADS = ("pytest_timeout", "tqdm", "loguru", "QueueFeederThread", "QueueManagerThread", "pydevd")
"""Prefixes of the names of threads that libraries start and keep."""
LIBRARY_CHILDREN = ("resource_tracker", "forkserver")
"""Parts of the command lines of processes that multiprocessing starts and keeps."""


def left_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the live threads that are not in `before`, except those of libraries."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.is_alive() and not thread.name.startswith(LIBRARY_THREADS)
    ]


def left_children(before: dict[int, str]) -> dict[int, str]:
    """Return the child processes that are not in `before`, except those of libraries: process number → command line."""
    return {
        pid: line
        for pid, line in children().items()
        if pid not in before and not any(part in line for part in LIBRARY_CHILDREN)
    }


def children() -> dict[int, str]:
    """Return the live children of this process: number → command line. Empty on systems without /proc.

    It is called twice per test, and reading /proc takes milliseconds; that there are none is known in a microsecond.
    """
    if sys.platform != "linux":
        return {}
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # leaves those that have ended as they are
    except ChildProcessError:
        return {}
    found = {}
    for number in _numbers_of_children():
        entry = Path("/proc", number)
        try:
            # The second field is the name in brackets, which may hold anything; state and parent come after it.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue  # ended in the meantime
    return found


def _numbers_of_children() -> list[str]:
    """Return the numbers of the children that each thread lists; of all processes where the kernel has no such list."""
    try:
        threads = list(Path("/proc/self/task").iterdir())
        listed = [path.read_text() for path in (thread / "children" for thread in threads) if path.exists()]
    except OSError:  # a thread has ended meanwhile, and another has its children
        listed = []
    return " ".join(listed).split() if listed else [entry.name for entry in Path("/proc").glob("[0-9]*")]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process alive."""
    threads, processes = set(threading.enumerate()), children()
    yield
    deadline = time.monotonic() + GRACE
    while (left_threads(threads) or left_children(processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    names = [f"{thread.name}{' (daemon)' if thread.daemon else ''}" for thread in left_threads(threads)]
    lines = [f"{pid}: {line}" for pid, line in left_children(processes).items()]
    if names or lines:
        pytest.fail(
            f"the test left behind, {GRACE:g} s after its end: threads {names}, child processes {lines}", pytrace=False
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests into the order in which they are distributed, in worker processes of pytest-xdist."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank_of(item.nodeid))


@pytest.fixture(autouse=True, scope="module")
def nothing_old_in_the_collector() -> None:
    """Exclude what exists before a file's tests from garbage collection: many tests call the collector."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that distributes the units of `tests.distribution`."""
    from xdist.scheduler import LoadScopeScheduling

    class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False  # units stay in the order of the tests
    return UnitScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End the process even if a test left a thread that never ends, which Python would wait for."""
    stuck = [thread for thread in left_threads({threading.main_thread()}) if not thread.daemon]
    if stuck:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
