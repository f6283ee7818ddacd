"""Kernels with private machine code: the callees of a kernel are private copies in it, the same in every process.

Numba links the code of the callees into a kernel, optimises it there again, and leaves each copy visible under one
name; of all copies that a process has loaded, the dynamic linker takes the first. Two copies may sum in another order
(LLVM vectorises them in another context), so the bits of a result would depend on what else had been loaded: a process
that compiled its kernels, which has the inner ones too, would differ from one that loaded the outer ones from the
cache, and a resumed run from the run that it continues.

So after optimisation, and before a kernel is compiled to machine code, all functions in it except its own are made
private. Numba has no public way to do that: `PrivateLibrary` overrides the step of its code library that finalises the
module, and a compiler pass installs it in place of the usual library. A Numba in which that step has another name would
never call the override, so `check_hooks` looks for it when this module is imported, and warns.
"""

import inspect
import warnings
from typing import Any

import numba
from llvmlite.binding import Linkage
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import AnnotateTypes, NativeLowering

from threadloom.kernels.compiling.float_environment import TESTED_NUMBA, KernelLibrary
from threadloom.kernels.compiling.lowering import KernelLowering

HOOKS = (
    ("finalize", "_finalize_final_module"),
    ("finalize", "_optimize_final_module"),
    ("_get_module_for_linking", "_shared_module"),
)
"""Methods of Numba's library, each with the name that it must use for `PrivateLibrary` to have an effect."""


class PrivateLibrary(KernelLibrary):
    """Code of one kernel, of which only its entry points are visible to others."""

    def _optimize_final_module(self) -> None:
        # For callers of this kernel: a copy whose functions the linker may merge with equal ones. It is taken before
        # they are optimised, like the code of a `CalleeLibrary`, so that a caller has the same code with either.
        shared = self._final_module.clone()
        for function in shared.functions:
            if not function.is_declaration and function.linkage == Linkage.external:
                function.linkage = "linkonce_odr"
        self._shared_module = shared
        super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = "internal"
        super()._finalize_final_module()


class CalleeLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code of a kernel that only other kernels call: it is linked into them, optimised there, and never executed."""

    def _optimize_final_module(self) -> None:
        """Do nothing: LLVM optimises every copy in the kernel that it is linked into, once it knows its arguments."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _OwnLibrary(AnalysisPass):  # type: ignore[misc]
    """Compiler pass that sets the library to which the kernel is lowered."""

    _name = "own_library"

    def __init__(self) -> None:
        AnalysisPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        library = CalleeLibrary if state.flags.no_compile else PrivateLibrary
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()  # required by the cache
        return False


class PrivateCompiler(CompilerBase):  # type: ignore[misc]
    """Numba's compiler with a `PrivateLibrary`, or a `CalleeLibrary` where no machine code is wanted.

    The intermediate code is translated by `kernels.compiling.lowering`.
    """

    def define_pipelines(self) -> list[Any]:
        """Return the usual passes, with the one that sets the library, and the package's translation."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OwnLibrary, AnnotateTypes)
        passes.add_pass_after(KernelLowering, NativeLowering)
        passes.passes = [entry for entry in passes.passes if entry[0] is not NativeLowering]
        passes.finalize()
        return [passes]


def missing_hooks(library: type) -> list[str]:
    """Return the methods of `HOOKS` that the class lacks, or that do not use the expected name."""
    missing = []
    for method, used in HOOKS:
        code = getattr(inspect.unwrap(getattr(library, method, None)), "__code__", None)  # type: ignore[arg-type]
        if code is None or used not in code.co_names:
            missing.append(f"{method}() with {used}")
    return missing


def check_hooks(library: type) -> None:
    """Warn if the copies would silently remain visible to others."""
    missing = missing_hooks(library)
    if missing:
        warnings.warn(
            f"compiled kernels cannot have private copies of their callees: expected a Numba whose {library.__name__} "
            f"has {' and '.join(missing)}, found Numba {numba.__version__} without. Results may differ in their last "
            "bits between a process that compiled its kernels and one that loaded them from the cache, so a resumed "
            f"run need not equal the run that it continues. Hint: pip install numba=={TESTED_NUMBA}",
            RuntimeWarning,
            stacklevel=2,
        )


if not numba.config.DISABLE_JIT:
    check_hooks(JITCodeLibrary)
