"""Choices that hold for the whole process and that compiled code reads at run time.

Numba's cache on disk does not distinguish constants of the process that compiled a kernel, so a later process would
load the choice of an earlier one. A switch is therefore a number in memory that compiled code loads through a symbol.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Generic, TypeVar

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Choice = TypeVar("Choice", bound=Enum)


class ProcessSwitch(Generic[Choice]):
    """One of several enum members, the same for all threads. Must be a module-level constant."""

    read: Callable[[], int]
    """Return the index of the current member in `members` ; in compiled code only."""

    def __init__(self, symbol: str, members: Sequence[Choice], initial: Choice) -> None:
        """Register the switch. `symbol` names its memory in this process and must be unique."""
        self._members = tuple(members)
        self._index = ctypes.c_int32(self._members.index(initial))  # written by `set_to` alone
        llvmlite.binding.add_symbol(symbol, ctypes.addressof(self._index))
        self.read = _make_read(symbol)

    @property
    def current(self) -> Choice:
        """The current member."""
        return self._members[self._index.value]

    @contextmanager
    def set_to(self, member: Choice) -> Iterator[None]:
        """Select `member` within the ``with`` block. Enter it while no other thread is inside a kernel."""
        earlier = self._index.value
        self._index.value = self._members.index(member)
        try:
            yield
        finally:
            self._index.value = earlier


def _make_read(symbol: str) -> Callable[[], int]:
    """Return the intrinsic that loads the number by its symbol."""

    @intrinsic
    def read(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            cell = cgutils.add_global_variable(builder.module, ir.IntType(32), symbol)
            return builder.sext(builder.load(cell), ir.IntType(64))

        return types.intp(), codegen

    return read
