"""Dispatcher of a kernel, which compiles no more of it than is called.

Numba compiles each callee of a kernel as if Python called it too: it builds two wrappers, emits machine code and loads
it. The kernel has its own copies of its callees, so this code is never executed, and it takes a third of the time that
a large kernel takes to compile. `KernelDispatcher` compiles a callee only as far as its optimised LLVM module, from
which the kernel is linked. If Python calls the callee later, it is compiled again, with all that a call needs. The
wrapper for callers in C is built only if an `Entry` asks for it.

The code of a kernel is the same for both forms of its callees: their LLVM functions are equal, and no wrapper contains
a copy of the function that it calls.

Python's garbage collector pauses meanwhile: Numba's intermediate code is millions of objects that live until the
kernel is compiled, and to look at them again and again takes a fifth of the time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.compiler import CompileResult, Flags
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.environment import lookup_environment
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

from threadloom.kernels.compiling.symbol_visibility import CalleeLibrary, PrivateCompiler


class KernelDispatcher(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """Numba's dispatcher of one kernel; the arguments of its constructor are Numba's."""

    _depth = 0
    """Number of kernels being compiled, each a callee of the one before. Protected by Numba's lock of its compiler."""
    _left_out: frozenset[str] = frozenset()
    """Names of kernels that a call does not compile; written by `left_out` alone."""

    def __init__(
        self,
        py_func: Any,
        locals: dict[str, Any] | None = None,  # noqa: A002  # Numba passes it by name
        targetoptions: dict[str, Any] | None = None,
        pipeline_class: type = PrivateCompiler,
    ) -> None:
        super().__init__(py_func, locals, targetoptions, pipeline_class)
        self._compiler = _KernelCompiler(py_func, self.targetdescr, self.targetoptions, self.locals, pipeline_class)

    def compile(self, sig: Any) -> Any:
        """Compile the kernel for a signature or load it from the cache, unless that was done.

        Within the compilation of another kernel it is compiled as a callee, otherwise for calls by Python.
        """
        with global_compiler_lock:
            types = tuple(normalize_signature(sig)[0])
            self._compiler.for_callee = KernelDispatcher._depth > 0
            if not self._compiler.for_callee and self.is_callee(types):
                del self.overloads[types]
            KernelDispatcher._depth += 1
            try:
                with _garbage_kept():
                    return super().compile(sig)
            finally:
                KernelDispatcher._depth -= 1

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        """Return the function to call, for arguments of types for which this process has no machine code yet."""
        if self.py_func.__name__ in KernelDispatcher._left_out:
            return _return_zero
        return super()._compile_for_args(*args, **kws)

    def enable_entry(self) -> None:
        """Build the wrapper for callers in C, too, whenever the kernel is compiled."""
        self._compiler.has_entry = True

    def add_overload(self, cres: CompileResult) -> None:
        """Register a compiled signature."""
        if isinstance(cres.library, CalleeLibrary):
            self._add_callee(cres)
        else:
            _set_environments(cres.library)
            super().add_overload(cres)

    def is_callee(self, types: tuple[Any, ...]) -> bool:
        """Return True if the kernel is compiled for arguments of these types, and only as a callee."""
        return types in self.overloads and isinstance(self.overloads[types].library, CalleeLibrary)

    def _add_callee(self, cres: CompileResult) -> None:
        """Register a signature that other kernels may call; Numba finds its code by a key, usually its entry point."""
        key = object()
        self.targetctx.insert_user_function(key, cres.fndesc, [cres.library])
        self.overloads[tuple(cres.signature.args)] = cres._replace(entry_point=key)


@contextmanager
def left_out(*names: str) -> Iterator[None]:
    """Let calls from Python of kernels with these names do nothing and return zero, unless they are compiled already.

    For compiling a part of a program's kernels; while no other thread calls kernels.
    """
    before = KernelDispatcher._left_out
    KernelDispatcher._left_out = before | set(names)
    try:
        yield
    finally:
        KernelDispatcher._left_out = before


def _return_zero(*_: object) -> float:
    return 0.0


class _KernelCompiler(_FunctionCompiler):  # type: ignore[misc]
    for_callee = False
    has_entry = False

    def _customize_flags(self, flags: Flags) -> Flags:
        if self.for_callee:
            flags.no_compile = flags.no_cpython_wrapper = True
        flags.no_cfunc_wrapper = self.for_callee or not self.has_entry
        return flags


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Pause Python's garbage collector, unless it is off."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _set_environments(library: Any) -> None:
    """Set the variables through which the code of callees finds their globals; Numba does it for the kernel alone."""
    for variable in library._final_module.global_variables:
        environment = lookup_environment(variable.name)
        if environment is not None:
            library.codegen.set_env(variable.name, environment)
