"""Messages between a worker thread and its process: framing, pickling, and arrays that cross by reference.

Guarantees: an array whose memory is a SharedPool's crosses as about a hundred bytes, slices, strides and read-only
views included, and arrives as a view of the same memory. Anything else is pickled. A handle that names memory beyond
its slot, or a lending that is over, is refused.

Ownership: one `Wire` belongs to one thread on either side; only `shut_down` may be called from another. A conversation
is strictly one message there, one back, so nothing of the next message is ever in the way.

Assumption: the other end is our own process, reached by an unnamed socket; nothing here reads what others wrote.
"""

import copyreg
import io
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from multiprocessing.reduction import ForkingPickler as PlainPickler
from typing import Any, NamedTuple

import numpy as np
from multiprocess.reduction import ForkingPickler as DillPickler
from numpy.typing import NDArray

from threadloom.pipeline.core import PipelineError, SharedPool, SharedSlot, slot_of


class MessageKind(IntEnum):
    """What a message is."""

    BEGIN = 1  # to the worker: the function
    CALL = 2  # to the worker: an item
    SLOT = 3  # to the worker: the slot that it asked for
    POOL = 4  # to the worker, before any of these: a pool that it needs to read the next message
    END = 5  # to the worker: tear down and leave
    READY = 6  # from the worker: set up, or torn down
    RESULT = 7  # from the worker: what the function returned
    ERROR = 8  # from the worker: what the function raised
    TAKE = 9  # from the worker: it needs a slot of a pool


class ConnectionClosed(Exception):
    """The other side is gone, or this side was told to stop."""


class Payload(NamedTuple):
    """A pickled value."""

    data: bytes | bytearray
    dilled: bool  # whether it takes dill to read it
    pools: Sequence[SharedPool] = ()  # those that the other side has to map before it can read it


class PoolHandle(NamedTuple):
    """What the other process is told of a pool, beside its descriptor."""

    name: str
    slots: int
    slot_bytes: int


_HEADER = struct.Struct("<B??Q")  # kind, whether dilled, whether a descriptor comes with it, bytes that follow
_JOINED = 1 << 16  # payloads up to this size are copied behind their header, to save a system call


class Wire:
    """One end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: MessageKind, payload: Payload | None = None, fd: int | None = None) -> None:
        data, dilled = (b"", False) if payload is None else payload[:2]
        header = _HEADER.pack(kind, dilled, fd is not None, len(data))
        try:
            if fd is not None:
                socket.send_fds(self._socket, [header], [fd])
                self._socket.sendall(data)
            elif len(data) <= _JOINED:
                self._socket.sendall(header + data)
            else:
                self._socket.sendall(header)
                self._socket.sendall(data)
        except OSError as error:
            raise ConnectionClosed(str(error)) from None

    def receive(self) -> tuple[MessageKind, Payload, int | None]:
        """Return the next message and the descriptor that came with it."""
        try:
            header, fds, _, _ = socket.recv_fds(self._socket, _HEADER.size, 1)
            while 0 < len(header) < _HEADER.size and (more := self._socket.recv(_HEADER.size - len(header))):
                header += more
            if len(header) < _HEADER.size:
                raise ConnectionClosed("the other side closed the connection")
            kind, dilled, has_fd, size = _HEADER.unpack(header)
            data = bytearray(size)
            rest = memoryview(data)
            while rest:
                got = self._socket.recv_into(rest)
                if not got:
                    raise ConnectionClosed("the other side closed the connection")
                rest = rest[got:]
        except OSError as error:
            raise ConnectionClosed(str(error)) from None
        if has_fd and not fds:
            raise PipelineError("the descriptor of a pool did not arrive: too many open files (see ulimit -n)")
        return MessageKind(kind), Payload(data, dilled), fds[0] if fds else None

    def shut_down(self) -> None:
        """Make every wait on this connection end, on both sides. From any thread, any number of times."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


_reading = threading.local()  # .pickles: whose message this thread is unpickling; set by Pickles.loads alone


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
    pickles: Pickles = _reading.pickles
    return pickles.open_slot(pool, number, serial).view(shape, dtype, offset, strides, writeable)


def _open_pool(pool: int) -> SharedPool:
    pickles: Pickles = _reading.pickles
    return pickles.pools[pool]


class Pickles:
    """How values are pickled on one side of one connection, with the pools that both sides know.

    `open_slot(pool, number, serial)` finds a slot that a message names; pools are numbered in the order of their first
    crossing. The worker side only knows pools that it was sent.
    """

    def __init__(self, open_slot: Callable[[int, int, int], SharedSlot], *, owner: bool) -> None:
        self.open_slot = open_slot
        self.pools: list[SharedPool] = []
        self._owner = owner
        self._pools_sent = 0  # how many of the pools the other side has been told of
        self._registered = -1
        self._table: dict[type, Callable[[Any], Any]] = {}

    def dumps(self, value: Any, *, by_value: bool = False) -> Payload:
        """Pickle a value; with dill if the plain way does not do, or at once if `by_value`.

        The caller sends the pools of the payload first, and then says so with `mark_pools_sent`.
        """
        plain: Exception | None = None
        if not by_value:
            try:
                return self._pack(self._dump_plain(value), dilled=False)
            except Exception as error:  # whatever a class's own methods raise
                plain = error
        try:
            return self._pack(self._dump_dill(value, by_value), dilled=True)
        except Exception as error:
            shown = plain or error
            raise PipelineError(
                f"a value of type {type(value).__name__} cannot go to another process "
                f"({type(shown).__name__}: {shown}): pass plain data and arrays, and open files, locks and connections "
                f"in the process itself, or run the stage on threads"
            ) from error

    def loads(self, payload: Payload) -> Any:
        """Return the value of a payload, with views of shared memory where the sender had them."""
        _reading.pickles = self
        try:
            return (DillPickler if payload.dilled else PlainPickler).loads(payload.data)
        finally:
            del _reading.pickles

    def mark_pools_sent(self) -> None:
        """Note that the other side has been sent every pool."""
        self._pools_sent = len(self.pools)

    def _pack(self, data: bytes, *, dilled: bool) -> Payload:
        return Payload(data, dilled, tuple(self.pools[self._pools_sent :]))

    def _dump_plain(self, value: Any) -> bytes:
        if self._registered != len(copyreg.dispatch_table):  # libraries add to it as they are imported
            self._registered = len(copyreg.dispatch_table)
            # One dict, which the pickler reads in C: a ChainMap costs more than all the rest.
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

    def _dump_dill(self, value: Any, by_value: bool) -> bytes:
        def override(each: Any) -> Any:
            if type(each) is np.ndarray:
                return self._reduce_array(each)
            return self._reduce_pool(each) if isinstance(each, SharedPool) else NotImplemented

        buffer = io.BytesIO()
        pickler = DillPickler(buffer, 5, recurse=by_value)  # with the globals that it uses, where there is no module
        pickler.reducer_override = override  # dill's own table comes before the dispatch table
        pickler.dump(value)
        return buffer.getvalue()

    def _reduce_array(self, array: NDArray[Any]) -> Any:
        slot = slot_of(array)
        if slot is None or not self._crosses(slot.pool):
            return array.__reduce_ex__(5)
        offset = array.__array_interface__["data"][0] - slot.address
        dtype = array.dtype.str if array.dtype.isbuiltin == 1 else array.dtype
        strides = None if array.flags.c_contiguous else array.strides
        where = (self._number(slot.pool), slot.number, slot.serial)
        return _open_array, (*where, array.shape, dtype, offset, strides, array.flags.writeable)

    def _reduce_pool(self, pool: SharedPool) -> Any:
        if not self._crosses(pool):
            raise PipelineError(f"pool {pool.name!r} belongs to another process: make pools in the parent")
        return _open_pool, (self._number(pool),)

    def _crosses(self, pool: SharedPool) -> bool:
        """Whether the other side can see this pool: one that a worker made for itself stays its own."""
        return self._owner or any(pool is each for each in self.pools)

    def _number(self, pool: SharedPool) -> int:
        for number, each in enumerate(self.pools):
            if each is pool:
                return number
        self.pools.append(pool)
        return len(self.pools) - 1
