"""Kernels that are compiled once and called through an address, so that their callers do not contain them.

Numba links the code of every callee into a kernel, and LLVM optimises it there again: a matrix product that the layers
of a model reach by twenty paths would be compiled twenty times. A kernel behind an entry is compiled on its own; a call
is an indirect jump to an address that compiled code loads through a symbol. The address is valid in this process only,
so the cache on disk never holds one.

A kernel must be prepared before it is called, unless its entry prepares itself: then the first call in a process goes
through Python, which compiles the kernel or loads it from the cache. If Ctrl-C interrupts that, the caller raises
KeyboardInterrupt: an exception cannot leave the function that Python calls back.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic

from threadloom.kernels.compiling.arguments import numba_type
from threadloom.kernels.compiling.jit import JIT_ENABLED

_INT8, _INT64 = ir.IntType(8), ir.IntType(64)
_CALLBACK = ctypes.CFUNCTYPE(None)  # acquires the GIL, which kernels have released


class Entry:
    """Kernel behind an address. Must be a module-level constant: compiled code reads its memory.

    The kernel may be compiled for several types of its argument, as for several number formats: there is an address for
    each, and a call takes the one of its argument's type.
    """

    call: Callable[[Any], None]
    """Call the kernel with its named tuple, in compiled code only.

    Raises RuntimeError if the kernel is not prepared; KeyboardInterrupt if it prepares itself and was interrupted.
    If ``NUMBA_DISABLE_JIT`` is set, it is the Python function.
    """

    def __init__(self, symbol: str, function: Any, *arguments: Any, prepares_itself: bool = False) -> None:
        """Register the addresses of `function`, a kernel of one named tuple.

        Each of `arguments` is a class of named tuples, whose annotations give the type, or such a type (`type_of`).
        `symbol` names the address in this process and must be unique. With `prepares_itself` the first call prepares
        the kernel.
        """
        self._function = function
        self._addresses: dict[Any, _Address] = {}
        self.call = _make_call(symbol, self._addresses) if JIT_ENABLED else function
        if JIT_ENABLED:
            function.enable_entry()
            kinds = (argument if isinstance(argument, types.Type) else numba_type(argument) for argument in arguments)
            for number, kind in enumerate(dict.fromkeys(kinds)):
                self._addresses[kind] = _Address(f"{symbol}_{number}", function, kind, prepares_itself=prepares_itself)

    def prepare(self, *arguments: Any) -> None:
        """Compile the kernel or load it from the cache, unless that was done; without the compiler, do nothing.

        `arguments` are Numba types, those of `__init__`; without any, all of them.
        """
        for kind, address in self._addresses.items():
            if not arguments or kind in arguments:
                address.prepare()


class _Address:
    """Address of a kernel for one type of its argument, and the symbols by which compiled code knows it."""

    def __init__(self, symbol: str, function: Any, kind: Any, *, prepares_itself: bool) -> None:
        self._function, self._kind = function, kind
        self._address = ctypes.c_int64(0)  # written by `prepare` alone
        self.symbol, self.prepare_symbol = symbol, ""
        llvmlite.binding.add_symbol(symbol, ctypes.addressof(self._address))
        if prepares_itself:
            self.prepare_symbol = f"{symbol}_prepare"
            self._callback = _CALLBACK(self._prepare_unless_interrupted)  # compiled code keeps its address
            llvmlite.binding.add_symbol(self.prepare_symbol, ctypes.cast(self._callback, ctypes.c_void_p).value)

    def prepare(self) -> None:
        """Compile the kernel or load it from the cache, unless that was done."""
        if not self._address.value:
            self._function.compile((self._kind,))
            compiled = self._function.overloads[(self._kind,)]
            self._address.value = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)

    def _prepare_unless_interrupted(self) -> None:
        with suppress(KeyboardInterrupt):  # the kernel that called this raises it again
            self.prepare()


def _make_call(name: str, addresses: dict[Any, _Address]) -> Callable[[Any], None]:
    """Return the intrinsic that loads an address and calls it; the tuple is one LLVM value, passed by its fields.

    If the address is still 0, it first calls the function that prepares the kernel, if there is one.
    """

    @intrinsic
    def call(typing_context: Any, arguments: Any) -> Any:
        if arguments not in addresses:
            raise errors.TypingError(f"{name} has no kernel for {arguments}, only for {', '.join(map(str, addresses))}")
        symbol, prepare_symbol = addresses[arguments].symbol, addresses[arguments].prepare_symbol
        error = KeyboardInterrupt if prepare_symbol else RuntimeError

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = ir.FunctionType(_INT8.as_pointer(), [values[0].type])  # Numba's None is a pointer
            cell = cgutils.add_global_variable(builder.module, _INT64, symbol)
            if prepare_symbol:
                with builder.if_then(_is_zero(builder, builder.load(cell)), likely=False):
                    nothing = ir.FunctionType(ir.VoidType(), [])
                    builder.call(cgutils.get_or_insert_function(builder.module, nothing, prepare_symbol), [])
            address = builder.load(cell)
            with builder.if_then(_is_zero(builder, address), likely=False):
                context.call_conv.return_user_exc(builder, error, (f"{name} was called before prepare()",))
            builder.call(builder.inttoptr(address, kind.as_pointer()), values)
            return context.get_dummy_value()

        return types.void(arguments), codegen

    return call


def _is_zero(builder: Any, value: Any) -> Any:
    return builder.icmp_signed("==", value, ir.Constant(_INT64, 0))
