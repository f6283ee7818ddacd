"""The only place of compiler flags: every kernel of the package is decorated with a function of this module.

`jit_kernel` compiles to machine code that releases the GIL, caches it on disk, and allows the float32 rewrites that
preserve NaN and infinity: reassociation (so that sums vectorise), fused multiply-add, reciprocals, and ignoring the
sign of zero. `nnan` and `ninf` are omitted on purpose: a diverging run must show NaN, not undefined values.

`jit_strict_fp` allows no rewrite. It is for element-wise passes whose result must not depend on how an array is split:
LLVM may lower a division to an estimate in the vector body and to a true division in the scalar remainder, and only
without these flags are the two the same bits.

`jit_always_inline` is for small helpers that must be inlined into the loop of their caller, so that it vectorises.
Multiply-add may be fused in it, but nothing is reassociated, so that a two-part constant stays two parts.

A compiled kernel contains the code of its callees, but Numba's cache checks only the file of the outermost one, and
would run an outdated inner kernel after an edit or an upgrade. So every cache entry is stamped with a digest of the
sources of the kernel and of all that it imports (`kernels.compiling.source_digest`), and several processes may write it
at once (`kernels.compiling.cache`). If several copies of an inner kernel were visible, a process would run the first
one that it loaded, so the copies are private (`kernels.compiling.symbol_visibility`). A kernel that only other kernels
call is not compiled to machine code (`kernels.compiling.dispatcher`).

With ``NUMBA_DISABLE_JIT=1`` all decorators return the function unchanged, and everything runs as Python and NumPy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import types
from numba.core.typing.templates import infer, infer_global, make_overload_template

from threadloom.kernels.compiling.cache import KernelCache
from threadloom.kernels.compiling.cache_folder import CACHE_FOLDER
from threadloom.kernels.compiling.dispatcher import KernelDispatcher
from threadloom.kernels.compiling.source_digest import SourceDigests

Function = TypeVar("Function", bound=Callable[..., object])
Choice = TypeVar("Choice", bound=Callable[..., Any])

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

JIT_ENABLED: bool = not numba.config.DISABLE_JIT
"""False if ``NUMBA_DISABLE_JIT`` is set: then code that only the compiler understands is replaced by NumPy."""

_COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}
_NOPYTHON = {"nopython": True}  # what `numba.njit` adds
_INLINED: dict[str, Any] = {"fastmath": False, "forceinline": True}

OVERLOAD_OPTIONS: dict[str, Any] = _COMMON | {"fastmath": FASTMATH}
"""Flags of `jit_kernel`, for the ``jit_options`` of an ``overload``, which takes no decorator of this module."""
OVERLOAD_STRICT_INLINE: dict[str, Any] = _COMMON | _INLINED
"""Flags of `jit_strict_inline`, likewise."""


SOURCES = SourceDigests(Path(__file__).parents[1], __name__.rsplit(".", 2)[0])
"""The sources of the package. What was compiled from other ones, or measured with them, is not valid."""


def _compiled(function: Function, **options: Any) -> Function:
    """Return `function` as a Numba dispatcher that checks no bounds, releases the GIL, and caches under its digest."""
    if not JIT_ENABLED:
        return function
    dispatcher: Any = KernelDispatcher(function, targetoptions=_NOPYTHON | _COMMON | options)
    if CACHE_FOLDER.path:
        stamp = SOURCES.of_module(function.__module__)
        dispatcher._cache = KernelCache(function, stamp)  # Numba has no public way to set its cache
    return cast(Function, dispatcher)


def jit_inline_body(function: Function) -> Function:
    """Make Numba copy the body of `function` into its callers: for functions that only pass arguments on.

    Numba compiles and LLVM optimises every kernel with all its callees, so each layer of wrappers around a large kernel
    costs as much compile time as the kernel itself. This saves the layer. The function must do no arithmetic, which
    would have the floating-point flags of the caller.
    """
    return _compiled(function, fastmath=False, inline="always")


def jit_kernel(function: Function) -> Function:
    """Compile `function` with the package's flags; the types of the arguments are inferred at the first call."""
    return _compiled(function, fastmath=FASTMATH)


def jit_strict_fp(function: Function) -> Function:
    """Compile `function` without floating-point rewrites: every element has the bits of IEEE arithmetic."""
    return _compiled(function, fastmath=False)


def jit_strict_inline(function: Function) -> Function:
    """Compile a helper of a `jit_strict_fp` kernel: always inlined, without floating-point rewrites."""
    return _compiled(function, **_INLINED)


def jit_always_inline(function: Function) -> Function:
    """Compile a helper that LLVM must inline; only fusing multiply-add and ignoring the sign of zero are allowed."""
    return _compiled(function, fastmath={"nsz", "contract"}, forceinline=True)


def overload_inline(function: Callable[..., Any]) -> Callable[[Choice], Choice]:
    """Decorate a function that returns the body of `function` for the types of its arguments, copied into callers.

    As Numba's ``overload`` with ``inline="always"``: the flags of the caller count for the body. Numba compiles a body
    to know its types, as if Python called it, with all that it calls, to machine code that nothing executes. Here it is
    compiled like the callee of a kernel, which has none (`kernels.compiling.dispatcher`).
    """

    def decorate(choose: Choice) -> Choice:
        template = make_overload_template(function, choose, {}, True, "always")
        template._get_jit_decorator = lambda _: _body
        infer(template)
        infer_global(function, types.Function(template))
        return choose

    return decorate


def _body(**options: Any) -> Callable[[Any], Any]:
    return lambda function: KernelDispatcher(function, targetoptions=_NOPYTHON | options)
