"""Sparing use of a limited address space (``ulimit -v``), set up before any thread is started.

A thread reserves a stack of 8 MB and, at its first allocation with glibc, an arena of 64 MB or more; of both it uses a
small part. Without a limit such a reservation costs nothing, so nothing is changed.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import MutableMapping

STACK_BYTES = 2 << 20
"""Stack of a thread. Kernels keep their arrays elsewhere; compiling one, which a stage may do, needs the most."""
ARENAS = "2"
_M_ARENA_MAX = -8  # of <malloc.h>


def spare_address_space(environment: MutableMapping[str, str] | None = None) -> bool:
    """Reduce stacks, arenas and the threads of BLAS if the address space is limited; return True if it is.

    Variables that the user has set are kept; child processes inherit the others.
    """
    environment = os.environ if environment is None else environment
    if not _is_limited():
        return False
    threading.stack_size(STACK_BYTES)
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads and their buffers are allocated on import
    if "MALLOC_ARENA_MAX" not in environment:
        environment["MALLOC_ARENA_MAX"] = ARENAS  # read by glibc when a process starts
        with contextlib.suppress(AttributeError, OSError, TypeError):  # a C library without arenas
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, int(ARENAS))
    return True


def _is_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
