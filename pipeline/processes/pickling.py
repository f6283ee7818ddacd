"""Pickling of messages, in which arrays of a SharedPool are sent by reference.

Guarantees: an array in the memory of a SharedPool is sent as about a hundred bytes, slices, strides and read-only views
included, and is received as a view of the same memory. Everything else is pickled. A reference to memory outside its
slot, or to a slot that is no longer lent, is rejected.
"""

import copyreg
import io
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler as PlainPickler
from typing import Any, ClassVar, NamedTuple

import numpy as np
from multiprocess.reduction import ForkingPickler as DillPickler
from numpy.typing import NDArray

from threadloom.pipeline.core import PipelineError, SharedPool, SharedSlot, slot_of
from threadloom.pipeline.processes.connection import Payload


class PoolHandle(NamedTuple):
    """The description of a pool that is sent to the other process, in addition to its file descriptor."""

    name: str
    slots: int
    slot_bytes: int


class MessagePickler:
    """The pickler of one side of one connection, with the pools that both sides know.

    `open_slot(pool, number, serial)` returns a slot that a message refers to; pools are numbered in the order in which
    they were first sent. The process knows only the pools that it was sent; `owner` is True for the parent.
    """

    _loading: ClassVar = threading.local()
    """`.pickler` is the instance whose message the current thread is unpickling; set by `loads` only. It is a class
    attribute, because pickle calls reconstruction functions by import name, without a reference to the unpickler."""

    def __init__(self, open_slot: Callable[[int, int, int], SharedSlot], *, owner: bool) -> None:
        self.open_slot = open_slot
        self.pools: list[SharedPool] = []
        self._owner = owner
        self._pools_sent = 0  # number of leading entries of `pools` that the other side has received
        self._registered = -1  # size of copyreg's table when `_table` was built
        self._table: dict[type, Callable[[Any], Any]] = {}

    def dumps(self, value: Any, *, by_value: bool = False) -> Payload:
        """Return `value` pickled; with dill if plain pickling fails, or at once if `by_value`.

        The caller has to send the pools of the payload first, and then call `mark_pools_sent`.
        """
        plain: Exception | None = None
        if not by_value:
            try:
                return self._pack(self._dump_plain(value), dilled=False)
            except Exception as error:  # any error: pickling calls methods of the value's class
                plain = error
        try:
            return self._pack(self._dump_dill(value, by_value=by_value), dilled=True)
        except Exception as error:
            shown = plain or error
            raise PipelineError(
                f"a value of type {type(value).__name__} cannot be sent to another process "
                f"({type(shown).__name__}: {shown}): pass plain data and arrays; open files, locks and connections in "
                f"the process itself, or run the stage on threads"
            ) from error

    def loads(self, payload: Payload) -> Any:
        """Return the value of a payload, with views of shared memory where the sender had them."""
        self._loading.pickler = self
        try:
            return (DillPickler if payload.dilled else PlainPickler).loads(payload.data)
        finally:
            del self._loading.pickler

    @classmethod
    def loading(cls) -> "MessagePickler":
        """Return the instance whose message the current thread is unpickling."""
        pickler: MessagePickler = cls._loading.pickler
        return pickler

    def mark_pools_sent(self) -> None:
        """Record that the other side has received every pool."""
        self._pools_sent = len(self.pools)

    def _pack(self, data: bytes, *, dilled: bool) -> Payload:
        return Payload(data, dilled, tuple(self.pools[self._pools_sent :]))

    def _dump_plain(self, value: Any) -> bytes:
        if self._registered != len(copyreg.dispatch_table):  # libraries extend it when they are imported
            self._registered = len(copyreg.dispatch_table)
            # One dict, which the pickler reads in C: a ChainMap costs more than everything else.
            table = PlainPickler(io.BytesIO()).dispatch_table
            self._table = {**table, np.ndarray: self._reduce_array}
            self._table[SharedPool] = self._reduce_pool
            if not self._owner:
                self._table.update({type(pool): self._reduce_pool for pool in self.pools})
        buffer = io.BytesIO()
        pickler = PlainPickler(buffer, 5)
        pickler.dispatch_table = self._table
        pickler.dump(value)
        return buffer.getvalue()

    def _dump_dill(self, value: Any, *, by_value: bool) -> bytes:
        def override(each: Any) -> Any:
            if type(each) is np.ndarray:
                return self._reduce_array(each)
            return self._reduce_pool(each) if isinstance(each, SharedPool) else NotImplemented

        buffer = io.BytesIO()
        pickler = DillPickler(buffer, 5, recurse=by_value)  # recurse: a function with the globals that it uses
        pickler.reducer_override = override  # dill's own table has precedence over the dispatch table
        pickler.dump(value)
        return buffer.getvalue()

    def _reduce_array(self, array: NDArray[Any]) -> Any:
        slot = slot_of(array)
        if slot is None or not self._is_known(slot.pool):
            return array.__reduce_ex__(5)
        offset = array.__array_interface__["data"][0] - slot.address
        dtype = array.dtype.str if array.dtype.isbuiltin == 1 else array.dtype
        strides = None if array.flags.c_contiguous else array.strides
        where = (self._number(slot.pool), slot.number, slot.serial)
        return _open_array, (*where, array.shape, dtype, offset, strides, array.flags.writeable)

    def _reduce_pool(self, pool: SharedPool) -> Any:
        if not self._is_known(pool):
            raise PipelineError(f"pool {pool.name!r} belongs to another process: create pools in the parent")
        return _open_pool, (self._number(pool),)

    def _is_known(self, pool: SharedPool) -> bool:
        """Return True if the other side can map this pool; it cannot map one that a worker process created."""
        return self._owner or any(pool is each for each in self.pools)

    def _number(self, pool: SharedPool) -> int:
        for number, each in enumerate(self.pools):
            if each is pool:
                return number
        self.pools.append(pool)
        return len(self.pools) - 1


def _open_array(
    pool: int,
    number: int,
    serial: int,
    shape: tuple[int, ...],
    dtype: str | np.dtype[Any],
    offset: int,
    strides: tuple[int, ...] | None,
    writeable: bool,
) -> NDArray[Any]:
    slot = MessagePickler.loading().open_slot(pool, number, serial)
    return slot.view(shape, dtype, offset, strides, writeable)


def _open_pool(pool: int) -> SharedPool:
    return MessagePickler.loading().pools[pool]
