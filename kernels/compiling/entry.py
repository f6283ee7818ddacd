"""Kernels that are compiled once and called through an address, so that their callers do not contain them.

Numba links the code of every callee into a kernel, and LLVM optimises it there again: a matrix product that the layers
of a model reach by twenty paths would be compiled twenty times. A kernel behind an entry is compiled on its own; a call
is an indirect jump to an address that compiled code loads through a symbol. The address is valid in this process only,
so the cache on disk never holds one.

A kernel must be prepared before it is called, unless its entry prepares itself: then the first call in a process goes
through Python, which compiles the kernel or loads it from the cache.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling.arguments import numba_type
from threadloom.kernels.compiling.jit import JIT_ENABLED

_INT8, _INT64 = ir.IntType(8), ir.IntType(64)
_CALLBACK = ctypes.CFUNCTYPE(None)  # acquires the GIL, which kernels have released


class Entry:
    """Kernel behind an address. Must be a module-level constant: compiled code reads its memory."""

    call: Callable[[Any], None]
    """Call the kernel with its named tuple, in compiled code only; RuntimeError if it is not prepared."""

    def __init__(self, symbol: str, function: Any, arguments: type, *, prepares_itself: bool = False) -> None:
        """Register an address for `function`, a kernel of one named tuple of class `arguments`.

        `symbol` names the address in this process and must be unique. With `prepares_itself` the first call prepares
        the kernel; an interruption of that is only printed, so commands prepare it before.
        """
        self._function, self._type = function, numba_type(arguments)
        if JIT_ENABLED:
            function.enable_entry()
        self._address = ctypes.c_int64(0)  # written by `prepare` alone
        llvmlite.binding.add_symbol(symbol, ctypes.addressof(self._address))
        prepare_symbol = ""
        if prepares_itself:
            prepare_symbol = f"{symbol}_prepare"
            self._callback = _CALLBACK(self.prepare)  # compiled code keeps its address
            llvmlite.binding.add_symbol(prepare_symbol, ctypes.cast(self._callback, ctypes.c_void_p).value)
        self.call = _make_call(symbol, self._type, prepare_symbol)

    def prepare(self) -> None:
        """Compile the kernel or load it from the cache, unless that was done; without the compiler, do nothing."""
        if JIT_ENABLED and not self._address.value:
            self._function.compile((self._type,))
            compiled = self._function.overloads[(self._type,)]
            self._address.value = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


def _make_call(symbol: str, argument_type: Any, prepare_symbol: str) -> Callable[[Any], None]:
    """Return the intrinsic that loads the address and calls it; the tuple is one LLVM value, passed by its fields.

    If the address is still 0, it first calls the function `prepare_symbol`, unless that is empty.
    """

    @intrinsic
    def call(typing_context: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = ir.FunctionType(_INT8.as_pointer(), [values[0].type])  # Numba's None is a pointer
            cell = cgutils.add_global_variable(builder.module, _INT64, symbol)
            if prepare_symbol:
                with builder.if_then(_is_zero(builder, builder.load(cell)), likely=False):
                    nothing = ir.FunctionType(ir.VoidType(), [])
                    builder.call(cgutils.get_or_insert_function(builder.module, nothing, prepare_symbol), [])
            address = builder.load(cell)
            with builder.if_then(_is_zero(builder, address), likely=False):
                context.call_conv.return_user_exc(builder, RuntimeError, (f"{symbol} was called before prepare()",))
            builder.call(builder.inttoptr(address, kind.as_pointer()), values)
            return context.get_dummy_value()

        return types.void(argument_type), codegen

    return call


def _is_zero(builder: Any, value: Any) -> Any:
    return builder.icmp_signed("==", value, ir.Constant(_INT64, 0))
