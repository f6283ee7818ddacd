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

from kernels.jit import JIT_ENABLED
from kernels.lowp_vector import BYTE, WORD


def make_entry(symbol: str, function: Any, count: int) -> Callable[[Any], None]:
    """Return an intrinsic that calls `function`, a kernel of `count` integers, with a tuple of so many (intp).

    `symbol` names the address in this process; no two entries may share one. The kernel is compiled, or loaded from
    the cache, here and now.
    """
    address = ctypes.c_int64(0)  # written once, before any code can read it
    _ADDRESSES.append(address)
    llvmlite.binding.add_symbol(symbol, ctypes.addressof(address))
    if JIT_ENABLED:
        arguments = (types.intp,) * count
        function.compile(arguments)
        compiled = function.overloads[arguments]
        address.value = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)

    @intrinsic
    def call(typing_context: Any, numbers: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            cell = cgutils.add_global_variable(builder.module, WORD, symbol)
            kind = ir.FunctionType(BYTE.as_pointer(), [WORD] * count)  # Numba's None is a pointer
            values = cgutils.unpack_tuple(builder, arguments[0], count)
            builder.call(builder.inttoptr(builder.load(cell), kind.as_pointer()), values)
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.intp, count)), codegen

    return call


_ADDRESSES: list[ctypes.c_int64] = []  # keeps the memory that compiled code reads
