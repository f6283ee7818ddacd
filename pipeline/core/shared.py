"""Arrays in anonymous shared memory, that process stages pass on without copying or pickling them.

    with SharedPool.of(8, (1080, 1920, 3), np.uint8, name="frames") as pool:
        frame = pool.empty((1080, 1920, 3), np.uint8)      # a slot of the pool, as an ordinary NumPy array

Guarantees: the memory of a pool is allocated, and zeroed, when the pool is made; `str(pool)` says how much. Nothing of
it has a name: it is one anonymous segment that lives as long as a process maps it, so that nothing can remain in
/dev/shm, whatever is killed at whatever moment. A slot is lent to one array at a time, and comes back once, when that
array and every view of it are gone, in whichever thread and by whatever error. What is lent therefore never changes
under its holder, and what a dead worker held comes back as soon as the thread that waited for it lets go of the item.

Ownership: slots belong to the process that made the pool. A worker process sees them for one call (`crossing`) and
asks its parent for further ones. `_free` may be changed from a destructor, at any bytecode, which is why it is a
SimpleQueue (reentrant) and no lock is taken there; `_live`, `_serial` and the figures belong to `_lock`.

Assumptions: an array and its views stay together with the item they came in. To keep one, keep `array.copy()`: arrays
that are kept are slots that the pool lacks. A failed run's exception holds the item it failed on until it is dropped.
Without the GIL, the last reference to a slot may wait for the thread that took it to run again; a taker that waits
therefore looks up every 50 ms there, and never with the GIL.

Limits: Linux uses memfd_create, which a container's --shm-size does not bound. Other POSIX systems use shm_open with an
immediate shm_unlink: a kill in the microseconds between the two leaves an empty name. Windows has neither.
"""

import mmap
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from math import prod
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from threadloom.pipeline.core.errors import Cancelled, PipelineError
from threadloom.pipeline.core.slots import PoolStatistics

Shape = int | tuple[int, ...]

_ABORTED: Final = -1  # in the queue of free slots, where every taker finds it and puts it back
_LOOK_UP: Final = None if getattr(sys, "_is_gil_enabled", lambda: True)() else 0.05


class PoolExhausted(PipelineError):
    """No slot came back within the time that `empty` was given."""


def anonymous_memory(name: str, size: int) -> int:
    """Return a file descriptor of `size` zeroed bytes of shared memory that has no name in any file system."""
    # Before anything is allocated: asked for more than there is, Linux kills a process rather than refuse.
    available = _available_memory()
    if available is not None and size > available:
        raise PipelineError(
            f"shared memory {name!r} needs {size:,} bytes, and {available:,} are available on this machine: use fewer "
            f"or smaller slots"
        )
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(f"threadloom-{name}", os.MFD_CLOEXEC)
    else:
        fd = _unlinked_memory()
    try:
        os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)  # a limit that is reached is an error here, and not a SIGBUS later
    except OSError as error:
        os.close(fd)
        raise PipelineError(
            f"shared memory {name!r} needs {size:,} bytes and the system refused them ({error}): use fewer or smaller "
            f"slots, or raise the memory limit"
        ) from error
    return fd


def _available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _unlinked_memory() -> int:
    try:
        from _posixshmem import shm_open, shm_unlink  # type: ignore[import-not-found]
    except ImportError:
        raise PipelineError(
            f"{sys.platform} has neither memfd_create nor shm_open, so arrays cannot be shared between processes "
            f"without leaving something behind: run these stages on threads"
        ) from None
    name = f"/threadloom-{os.urandom(6).hex()}"  # macOS takes 31 characters
    fd = shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    shm_unlink(name)
    return int(fd)


def map_memory(fd: int, size: int) -> NDArray[np.uint8]:
    """Map all of a segment. It is unmapped when the last view of the result is gone."""
    populate = getattr(mmap, "MAP_POPULATE", 0)  # no page faults in the steady state
    return np.frombuffer(mmap.mmap(fd, size, mmap.MAP_SHARED | populate), np.uint8)


class SharedSlot:
    """One slot, as seen by one holder: the base of every array in it."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "memory", "number", "pool", "serial")

    def __init__(self, pool: "SharedPool", memory: NDArray[np.uint8], number: int, serial: int) -> None:
        self.pool = pool
        self.memory = memory  # keeps the mapping
        self.number = number
        self.serial = serial
        """Which lending of its slot this is, so that an array of an earlier one is recognised."""
        self.address = memory.__array_interface__["data"][0] + number * pool.stride
        # NumPy makes the object that offers this the base of the array, and so keeps it while there is a view.
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (pool.slot_bytes,),
            "data": (self.address, False),
        }

    def view(
        self,
        shape: Shape,
        dtype: DTypeLike,
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
        writeable: bool = True,
    ) -> NDArray[Any]:
        """Return an array in this slot; one that would reach beyond it raises."""
        if offset < 0:  # what NumPy does not check
            raise ValueError(f"an array cannot begin {-offset} bytes before its slot")
        array: NDArray[Any] = np.ndarray(shape, dtype, np.asarray(self), offset, strides)
        array.flags.writeable = writeable
        return array


class SharedLease(SharedSlot):
    """A slot in the process that owns the pool. It goes back when the last array in it is gone."""

    __slots__ = ("_give_back",)

    def __init__(
        self,
        pool: "SharedPool",
        memory: NDArray[np.uint8],
        number: int,
        serial: int,
        give_back: Callable[[int], object],
    ) -> None:
        super().__init__(pool, memory, number, serial)
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self.number)


def slot_of(array: NDArray[Any]) -> SharedSlot | None:
    """Return the slot that an array lies in, or None if its memory is not a pool's."""
    base: object = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, SharedSlot) else None


class SharedPool:
    """Slots of shared memory, lent as NumPy arrays; `empty` blocks while none is free.

    Hand it to `start(resources=[pool])`, as anything that workers wait on. A pool whose arrays travel along a pipeline
    needs as many slots as there can be items in flight that hold one, and one stage with one worker that takes them:
    otherwise a late item may hold what an early one waits for. Use one pool for each stage that takes.
    """

    def __init__(self, slots: int, slot_bytes: int, *, name: str = "shared") -> None:
        if slots < 1 or slot_bytes < 1:
            raise ValueError(f"pool {name!r} needs at least 1 slot of 1 byte, got {slots} slots of {slot_bytes} bytes")
        self.name = name
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.stride = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # so that every array is aligned
        self._set_up()

    @classmethod
    def of(cls, slots: int, shape: Shape, dtype: DTypeLike = np.float32, *, name: str = "shared") -> Self:
        """Return a pool whose slots each hold an array of this shape."""
        return cls(slots, max(1, _bytes_of(name, shape, np.dtype(dtype))), name=name)

    def _set_up(self) -> None:
        self._fd = anonymous_memory(self.name, self.nbytes)
        self._close_fd = weakref.finalize(self, os.close, self._fd)
        self._memory = map_memory(self._fd, self.nbytes)
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(self.slots):
            self._free.put(number)
        self._lock = threading.Lock()
        self._live: list[weakref.ref[SharedLease] | None] = [None] * self.slots
        self._serial = 0
        self._most_lent = 0
        self._waited = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool: the slots, each rounded up to whole pages."""
        return self.slots * self.stride

    def __str__(self) -> str:
        return f"shared pool {self.name!r}: {self.slots} slots × {self.slot_bytes:,} bytes = {self.nbytes:,} bytes"

    def empty(self, shape: Shape, dtype: DTypeLike = np.float32, *, timeout: float | None = None) -> NDArray[Any]:
        """Return an array in a free slot, waiting for one; what is in it is left over from the last holder.

        Raises `Cancelled` once the pool is aborted, and `PoolExhausted` if no slot came back within `timeout` seconds.
        """
        kind = np.dtype(dtype)
        needed = _bytes_of(self.name, shape, kind)
        if needed > self.slot_bytes:
            raise PipelineError(
                f"an array of shape {shape} and type {kind} needs {needed:,} bytes, and the slots of pool "
                f"{self.name!r} have {self.slot_bytes:,}: make it with SharedPool.of({self.slots}, {shape}, "
                f"np.{kind.name}), or with slot_bytes={needed} or more"
            )
        return self.lend(timeout).view(shape, kind)

    def copy(self, array: NDArray[Any], *, timeout: float | None = None) -> NDArray[Any]:
        """Return a copy of an array in a free slot."""
        out = self.empty(array.shape, array.dtype, timeout=timeout)
        out[...] = array
        return out

    def lend(self, timeout: float | None = None) -> SharedSlot:
        """Return a free slot, waiting for one. It goes back when its last reference is gone."""
        number = self._take(timeout)
        try:
            with self._lock:
                self._serial += 1
                lease = SharedLease(self, self._memory, number, self._serial, self._free.put)
                self._live[number] = weakref.ref(lease)
                self._most_lent = max(self._most_lent, self.slots - self._free.qsize())
        except BaseException:
            self._free.put(number)
            raise
        return lease

    def _take(self, timeout: float | None) -> int:
        self._check_open()
        begin = time.perf_counter()
        number: int | None = None
        while number is None:
            left = None if timeout is None else max(0.0, begin + timeout - time.perf_counter())
            try:
                number = self._free.get(timeout=_LOOK_UP if left is None else min(left, _LOOK_UP or left))
            except Empty:
                if left == 0.0:
                    raise PoolExhausted(
                        f"no slot of {self.name!r} came back within {timeout:g} s: all {self.slots} are held by arrays "
                        f"that are still referred to. Give the pool more slots than items can be in flight, and copy "
                        f"what is kept"
                    ) from None
        with self._lock:
            self._waited += time.perf_counter() - begin
        if number == _ABORTED:
            self._free.put(_ABORTED)
            raise Cancelled(f"pool {self.name!r} was aborted")
        return number

    def held(self, number: int, serial: int) -> SharedSlot:
        """Return the lease that a handle from a worker process names."""
        ref = self._live[number]
        lease = None if ref is None else ref()
        if lease is None or lease.serial != serial:
            raise PipelineError(
                f"a worker process returned an array in slot {number} of pool {self.name!r} that it had been lent for "
                f"an earlier item: return arrays of the item in hand, or new ones"
            )
        return lease

    def fd(self) -> int:
        """Return the descriptor of the memory, for another process to map."""
        self._check_open()
        return self._fd

    def _check_open(self) -> None:
        if not self._close_fd.alive:
            raise PipelineError(f"pool {self.name!r} is closed: use it inside its `with` block")

    def abort(self) -> None:
        """Wake every waiting taker with `Cancelled`; later takers get it too, until `reopen`."""
        self._free.put(_ABORTED)

    def reopen(self) -> None:
        """Make an aborted pool usable for another run. Only when nothing waits for it."""
        numbers = []
        while not self._free.empty():
            numbers.append(self._free.get())
        for number in numbers:
            if number != _ABORTED:
                self._free.put(number)

    def close(self) -> None:
        """Give up the memory: it is freed once the arrays in it, and the workers that map it, are gone too."""
        self._close_fd()
        self._memory = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def statistics(self) -> PoolStatistics:
        """Return how the pool has been used so far; `lent` counts the slots that arrays lie in now."""
        with self._lock:
            lent = sum(ref is not None and ref() is not None for ref in self._live)
            return PoolStatistics(self.slots, lent, self._most_lent, self._waited)


def _bytes_of(name: str, shape: Shape, kind: np.dtype[Any]) -> int:
    if kind.hasobject:
        raise PipelineError(
            f"pool {name!r} cannot hold {kind} arrays: objects live in one process; use numbers or fixed-size strings"
        )
    sizes = (shape,) if isinstance(shape, int) else shape
    if any(size < 0 for size in sizes):
        raise ValueError(f"an array needs sizes of at least 0, got shape {shape}")
    return prod(sizes) * kind.itemsize
