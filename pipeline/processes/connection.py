"""The connection between a worker thread and its process: messages over a socket.

Ownership: on either side, one `Connection` belongs to one thread; only `shut_down` may be called from others. A reader
receives exactly one message at a time, also if more have been sent. Replies come in the order of the requests. The
parent sends several calls ahead only if they fit into the buffer of the socket: neither side may wait for the other to
read while the other waits in the same way.

Assumption: the peer is a process of this program, connected by an unnamed socket; no foreign data is read.
"""

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Final, NamedTuple

from threadloom.pipeline.core import PipelineError, SharedPool


class MessageKind(IntEnum):
    """The kind of a message."""

    BEGIN = 1  # to the process: the function
    CALL = 2  # to the process: an item
    SLOT = 3  # to the process: the slot that it requested
    POOL = 4  # to the process, before any of these: a pool that the next message refers to
    END = 5  # to the process: tear down and exit
    READY = 6  # from the process: set-up or tear-down has succeeded
    RESULT = 7  # from the process: the result of the function
    ERROR = 8  # from the process: the exception that was raised
    FLUSH = 10  # to the process: return the results of the state that is left
    TAKE = 9  # from the process: a request for a slot of a pool


class ConnectionClosed(Exception):
    """The peer has closed the connection, or this side has shut it down."""


class Payload(NamedTuple):
    """A pickled value."""

    data: bytes | bytearray
    dilled: bool  # True if it has to be read with dill
    pools: Sequence[SharedPool] = ()  # pools that the receiver has to map before it can read the value


_HEADER = struct.Struct("<B??Q")  # kind, dilled, True if a descriptor is attached, number of bytes that follow
MOST_AHEAD: Final = 1 << 16
"""Bytes of calls that may be sent ahead, apart from the first. They always fit into the buffer of the socket, so that
sending them never waits for the process, which may itself be waiting for the parent to read its reply."""
_JOINED = 1 << 16  # payloads up to this many bytes are sent together with their header, which saves a system call


class Connection:
    """One end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._unread = bytearray()  # received by `receive_reply`, and not returned so far

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def send(self, kind: MessageKind, payload: Payload | None = None, fd: int | None = None) -> None:
        """Send a message, with a file descriptor if `fd` is not None."""
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

    def send_calls(self, payloads: Sequence[Payload]) -> None:
        """Send several calls at once."""
        parts = [_HEADER.pack(MessageKind.CALL, each.dilled, False, len(each.data)) + each.data for each in payloads]
        try:
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            raise ConnectionClosed(str(error)) from None

    def receive(self) -> tuple[MessageKind, Payload, int | None]:
        """Return the next message and the file descriptor attached to it."""
        try:
            header, fds, _, _ = socket.recv_fds(self._socket, _HEADER.size, 1)
            while 0 < len(header) < _HEADER.size and (more := self._socket.recv(_HEADER.size - len(header))):
                header += more
            if len(header) < _HEADER.size:
                raise ConnectionClosed("the peer closed the connection")
            kind, dilled, has_fd, size = _HEADER.unpack(header)
            data = bytearray(size)
            self._fill(memoryview(data))
        except OSError as error:
            raise ConnectionClosed(str(error)) from None
        if has_fd and not fds:
            raise PipelineError("the descriptor of a shared pool was not received: too many open files (see ulimit -n)")
        return MessageKind(kind), Payload(data, dilled), fds[0] if fds else None

    @property
    def has_reply(self) -> bool:
        """True if `receive_reply` has received the begin of the next message, so that it waits for its sender only."""
        return len(self._unread) >= _HEADER.size

    def receive_reply(self) -> tuple[MessageKind, Payload]:
        """Return the next message, which has no descriptor; receives those after it at once, if they have been sent."""
        try:
            while not self.has_reply:
                received = self._socket.recv(_JOINED)
                if not received:
                    raise ConnectionClosed("the peer closed the connection")
                self._unread += received
            kind, dilled, _, size = _HEADER.unpack_from(self._unread)
            data = self._unread[_HEADER.size : _HEADER.size + size]
            del self._unread[: _HEADER.size + size]
            if len(data) < size:
                data = self._receive_rest(data, size)
        except OSError as error:
            raise ConnectionClosed(str(error)) from None
        return MessageKind(kind), Payload(data, dilled)

    def _receive_rest(self, begin: bytearray, size: int) -> bytearray:
        data = bytearray(size)
        data[: len(begin)] = begin
        self._fill(memoryview(data)[len(begin) :])
        return data

    def _fill(self, rest: memoryview) -> None:
        while rest:
            received = self._socket.recv_into(rest)
            if not received:
                raise ConnectionClosed("the peer closed the connection")
            rest = rest[received:]

    def shut_down(self) -> None:
        """End every wait on this connection, on both sides. May be called from any thread, any number of times."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()
