"""Kernels that are compiled once and called by address, so that their callers do not hold them.

Numba links into every kernel the code of all that it calls, and LLVM works through it again in each: a product that
the layers of a model reach by twenty ways would be compiled twenty times over. One behind an entry is compiled by
itself; a call of it is a jump to an address that compiled code reads by a symbol. The address is that of this process,
so the cache on disk never holds one.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling.jit import JIT_ENABLED

_BYTE, _WORD = ir.IntType(8), ir.IntType(64)


class Entry:
    """A kernel behind an address. A module-level constant: compiled code reads its memory."""

    call: Callable[[Any], None]
    """Calls the kernel with a tuple of its arguments, in compiled code only, and only after `prepare`."""

    def __init__(self, symbol: str, function: Any, arguments: tuple[Any, ...]) -> None:
        """`function`: a kernel; `arguments`: their Numba types, integers of a word (intp) and doubles (float64).

        `symbol` names the address in this process; no two entries may share one.
        """
        self._function, self._arguments = function, arguments
        self._address = ctypes.c_int64(0)  # written by `prepare` alone
        llvmlite.binding.add_symbol(symbol, ctypes.addressof(self._address))
        self.call = _caller(symbol, arguments)

    def prepare(self) -> None:
        """Compile the kernel, or load it from the cache, unless that was done."""
        if JIT_ENABLED and not self._address.value:
            self._function.compile(self._arguments)
            compiled = self._function.overloads[self._arguments]
            self._address.value = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


def _caller(symbol: str, arguments: tuple[Any, ...]) -> Callable[[Any], None]:
    signature = types.void(types.BaseTuple.from_types(arguments))

    @intrinsic
    def call(typing_context: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values = cgutils.unpack_tuple(builder, given[0], len(arguments))
            kind = ir.FunctionType(_BYTE.as_pointer(), [value.type for value in values])  # Numba's None is a pointer
            cell = cgutils.add_global_variable(builder.module, _WORD, symbol)
            builder.call(builder.inttoptr(builder.load(cell), kind.as_pointer()), values)
            return context.get_dummy_value()

        return signature, codegen

    return call
