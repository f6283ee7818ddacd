"""Pools of arrays in anonymous shared memory, which process stages pass on without copying or pickling.

    with SharedPool.of(8, (1080, 1920, 3), np.uint8, name="frames") as pool:
        frame = pool.empty((1080, 1920, 3), np.uint8)      # a slot of the pool, as an ordinary NumPy array

Guarantees: the memory of a pool is allocated and zeroed at construction; `str(pool)` includes its size. It is one
anonymous segment that exists as long as a process maps it, so nothing remains in /dev/shm even after a SIGKILL. A slot
is lent to one array at a time, and returns to the pool exactly once, when that array and all its views have been
deleted, in any thread and after any error. A lent slot therefore never changes under its holder, and the slots of a
dead worker process return as soon as the thread that waited for it drops the item.

Ownership: slots belong to the process that created the pool. A worker process holds them for one call, and requests
further ones from its parent. `_free` may be changed by a destructor, at any bytecode, so it is a SimpleQueue
(reentrant), and destructors take no lock; `_live`, `_serial` and the counters are guarded by `_lock`.

Assumptions: an array and its views are dropped together with their item. To keep data, keep `array.copy()`: arrays that
are kept occupy slots. The exception of a failed run refers to the item it failed on until it is dropped. Without the
GIL, the last reference to a slot may be released only when the thread that took it runs again; waiting takers therefore
poll every 50 ms in free-threaded Python, and never with the GIL.

Limits: Linux uses memfd_create, which a container's --shm-size does not bound. Other POSIX systems use shm_open with an
immediate shm_unlink; a kill in the microseconds between the two leaves an empty name. Windows has neither.
"""

import mmap
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from math import prod
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from threadloom.pipeline.core.errors import Cancelled, PipelineError
from threadloom.pipeline.core.slots import PoolStatistics
from threadloom.pipeline.core.system_memory import system_memory

Shape = int | tuple[int, ...]

_ABORTED: Final = -1  # marks an aborted pool in the queue of free slots; each taker puts it back
_LOOK_UP: Final = None if getattr(sys, "_is_gil_enabled", lambda: True)() else 0.05


class PoolExhausted(PipelineError):
    """No slot was returned within the timeout."""


def anonymous_memory(name: str, size: int) -> int:
    """Return a file descriptor of `size` zeroed bytes of shared memory without a name in any file system."""
    # Checked before the allocation: if memory runs out, Linux kills a process instead of refusing.
    _, available = system_memory()
    if available is not None and size > available:
        raise PipelineError(
            f"shared memory {name!r} needs {size:,} bytes, but only {available:,} are available to this process: use "
            f"fewer or smaller slots"
        )
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(f"threadloom-{name}", os.MFD_CLOEXEC)
    else:
        fd = _unlinked_memory()
    try:
        os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)  # fails here instead of with a SIGBUS later if a limit is reached
    except OSError as error:
        os.close(fd)
        raise PipelineError(
            f"cannot allocate {size:,} bytes of shared memory {name!r} ({error}): use fewer or smaller slots, or raise "
            f"the memory limit"
        ) from error
    return fd


def _unlinked_memory() -> int:
    try:
        from _posixshmem import shm_open, shm_unlink  # type: ignore[import-not-found]
    except ImportError:
        raise PipelineError(
            f"shared pools need memfd_create or shm_open, and {sys.platform} has neither: run these stages on threads"
        ) from None
    name = f"/threadloom-{os.urandom(6).hex()}"  # at most 31 characters on macOS
    fd = shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    shm_unlink(name)
    return int(fd)


def map_memory(fd: int, size: int) -> NDArray[np.uint8]:
    """Return the whole segment as an array. It is unmapped when the last view of that array is deleted."""
    populate = getattr(mmap, "MAP_POPULATE", 0)  # avoids page faults in the steady state
    return np.frombuffer(mmap.mmap(fd, size, mmap.MAP_SHARED | populate), np.uint8)


class SharedSlot:
    """A slot lent to one holder: the base object of all arrays in it."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "memory", "number", "pool", "serial")

    def __init__(self, pool: "SharedPool", memory: NDArray[np.uint8], number: int, serial: int) -> None:
        self.pool = pool
        self.memory = memory  # keeps the memory mapped
        self.number = number
        self.serial = serial
        """Number of this loan among all loans of the pool, by which an array of an earlier loan is recognised."""
        self.address = memory.__array_interface__["data"][0] + number * pool.stride
        # The object with this attribute becomes the base of the array, so it lives as long as a view exists.
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
        """Return an array in this slot. Raises if it would extend beyond the slot."""
        if offset < 0:  # NumPy does not check this
            raise ValueError(f"expected an offset of at least 0 bytes in the slot, got {offset}")
        array: NDArray[Any] = np.ndarray(shape, dtype, np.asarray(self), offset, strides)
        array.flags.writeable = writeable
        return array


class SharedLease(SharedSlot):
    """A slot in the process that owns the pool. It returns to the pool when the last array in it is deleted."""

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
    """Return the slot that contains `array`, or None if its memory belongs to no pool."""
    base: object = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, SharedSlot) else None


class SharedPool:
    """A pool of slots of shared memory, lent as NumPy arrays; `empty` blocks while none is free.

    Pass it to `start(resources=[pool])`, like everything that workers wait on. If its arrays travel along a pipeline,
    it needs as many slots as items in flight can hold, and they must be taken by one stage with one worker: otherwise a
    later item may hold the slot that an earlier item waits for. Use a separate pool for each stage that takes slots.
    """

    def __init__(self, slots: int, slot_bytes: int, *, name: str = "shared") -> None:
        if slots < 1 or slot_bytes < 1:
            raise ValueError(
                f"pool {name!r}: expected at least 1 slot of at least 1 byte, got {slots} slots of {slot_bytes} bytes"
            )
        self.name = name
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.stride = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # aligns slots to pages
        self._set_up()

    @classmethod
    def of(cls, slots: int, shape: Shape, dtype: DTypeLike = np.float32, *, name: str = "shared") -> Self:
        """Return a pool whose slots each hold one array of this shape and dtype."""
        return cls(slots, max(1, _bytes_of(name, shape, np.dtype(dtype))), name=name)

    def _set_up(self) -> None:
        self._fd = anonymous_memory(self.name, self.nbytes)
        self._close_fd = weakref.finalize(self, os.close, self._fd)
        self._memory = map_memory(self._fd, self.nbytes)
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(self.slots):
            self._free.put(number)
        self._lock = threading.RLock()  # reentrant: a finaliser may interrupt its holder
        self._live: list[weakref.ref[SharedLease] | None] = [None] * self.slots
        self._serial = 0
        self._most_lent = 0
        self._waited = 0.0

    @property
    def nbytes(self) -> int:
        """Size of the pool in bytes: all slots, each rounded up to whole pages."""
        return self.slots * self.stride

    def __str__(self) -> str:
        return f"shared pool {self.name!r}: {self.slots} slots × {self.slot_bytes:,} bytes = {self.nbytes:,} bytes"

    def empty(self, shape: Shape, dtype: DTypeLike = np.float32, *, timeout: float | None = None) -> NDArray[Any]:
        """Return an uninitialised array in a free slot, waiting until there is one.

        Raises `Cancelled` once the pool is aborted, `PoolExhausted` if no slot was returned within `timeout` seconds,
        and `PipelineError` if the array does not fit into a slot.
        """
        kind = np.dtype(dtype)
        needed = _bytes_of(self.name, shape, kind)
        if needed > self.slot_bytes:
            raise PipelineError(
                f"an array of shape {shape} and type {kind} needs {needed:,} bytes, but the slots of pool "
                f"{self.name!r} have {self.slot_bytes:,}: create it with SharedPool.of({self.slots}, {shape}, "
                f"np.{kind.name}), or with slot_bytes={needed} or more"
            )
        return self.lend(timeout).view(shape, kind)

    def copy(self, array: NDArray[Any], *, timeout: float | None = None) -> NDArray[Any]:
        """Return a copy of `array` in a free slot; see `empty`."""
        out = self.empty(array.shape, array.dtype, timeout=timeout)
        out[...] = array
        return out

    def lend(self, timeout: float | None = None) -> SharedSlot:
        """Return a free slot, waiting until there is one. It returns to the pool with its last reference."""
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
                        f"no slot of pool {self.name!r} was returned within {timeout:g} s: all {self.slots} are held "
                        f"by arrays that are still referenced. Create the pool with more slots than items in flight "
                        f"can hold, and copy arrays that are kept"
                    ) from None
        with self._lock:
            self._waited += time.perf_counter() - begin
        if number == _ABORTED:
            self._free.put(_ABORTED)
            raise Cancelled(f"pool {self.name!r} was aborted")
        return number

    def held(self, number: int, serial: int) -> SharedSlot:
        """Return the lease of slot `number` with this serial, as sent by a worker process. Raises if it has ended."""
        ref = self._live[number]
        lease = None if ref is None else ref()
        if lease is None or lease.serial != serial:
            raise PipelineError(
                f"a worker process returned an array in slot {number} of pool {self.name!r} that belonged to an "
                f"earlier item: return arrays of the current item, or new ones"
            )
        return lease

    def fd(self) -> int:
        """Return the file descriptor of the memory, for another process to map."""
        self._check_open()
        return self._fd

    def _check_open(self) -> None:
        if self.closed:
            raise PipelineError(f"pool {self.name!r} is closed: use it inside its `with` block")

    def abort(self) -> None:
        """Raise `Cancelled` in all waiting and later takers, until `reopen`."""
        self._free.put(_ABORTED)

    def reopen(self) -> None:
        """Make an aborted pool usable for another run. No thread may be waiting for it."""
        numbers = []
        while not self._free.empty():
            numbers.append(self._free.get())
        for number in numbers:
            if number != _ABORTED:
                self._free.put(number)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return not self._close_fd.alive

    def close(self) -> None:
        """Release the memory. It is freed once all arrays in it are deleted and no process maps it."""
        self._close_fd()
        self._memory = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def statistics(self) -> PoolStatistics:
        """Return the usage so far; `lent` counts the slots that contain arrays at present."""
        with self._lock:
            lent = sum(ref is not None and ref() is not None for ref in self._live)
            return PoolStatistics(self.slots, lent, self._most_lent, self._waited)


def _bytes_of(name: str, shape: Shape, kind: np.dtype[Any]) -> int:
    if kind.hasobject:
        raise PipelineError(
            f"pool {name!r} cannot hold arrays of {kind}: use numbers or fixed-size strings, which other processes can "
            f"read"
        )
    sizes = (shape,) if isinstance(shape, int) else shape
    if any(size < 0 for size in sizes):
        raise ValueError(f"expected non-negative sizes of an array, got shape {shape}")
    return prod(sizes) * kind.itemsize
