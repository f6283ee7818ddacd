"""Sparing use of limited address space (``ulimit -v``) and threads (``ulimit -u``), before any thread is started.

A thread reserves a stack of 8 MB and, at its first allocation with glibc, an arena of 64 MB or more; of both it uses a
small part. Without a limit such a reservation costs nothing, so nothing is changed. OpenBLAS starts its threads when it
is imported, and if it cannot, it sends SIGINT to the process, which then seems to have been stopped by Ctrl-C.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import MutableMapping

STACK_BYTES = 2 << 20
"""Stack of a thread. Kernels keep their arrays elsewhere; compiling one, which a stage may do, needs the most."""
ARENAS = "2"
FEW_PROCESSES = 1024
"""Limit on the threads of a user below which BLAS starts none; ordinary systems allow tens of thousands."""
_M_ARENA_MAX = -8  # of <malloc.h>


def spare_address_space(environment: MutableMapping[str, str] | None = None) -> bool:
    """Reduce the threads of BLAS, stacks and arenas as far as limits require; return True if address space is limited.

    Variables that the user has set are kept; child processes inherit the others.
    """
    environment = os.environ if environment is None else environment
    space, processes = _limits()
    if space is None and (processes is None or processes >= FEW_PROCESSES):
        return False
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    if space is None:
        return False
    threading.stack_size(STACK_BYTES)
    if "MALLOC_ARENA_MAX" not in environment:
        environment["MALLOC_ARENA_MAX"] = ARENAS  # read by glibc when a process starts
        with contextlib.suppress(AttributeError, OSError, TypeError):  # a C library without arenas
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, int(ARENAS))
    return True


def _limits() -> tuple[int | None, int | None]:
    """Return the limits on address space in bytes and on threads; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    space, processes = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC))
    return _finite(space, resource.RLIM_INFINITY), _finite(processes, resource.RLIM_INFINITY)


def _finite(limit: int, infinity: int) -> int | None:
    return None if limit == infinity else limit
