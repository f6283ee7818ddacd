"""Kernels whose machine code is their own: what a kernel calls is a private copy in it, the same in every process.

Numba links into a kernel the code of what it calls, optimises it there once more, and leaves each copy visible under
one name; of all copies that a process has loaded, the dynamic linker takes the one that came first. Two copies may sum
in another order (LLVM vectorises them in another context), so the bits of a result would depend on what else had been
loaded: a process that compiled its kernels, which has the inner ones too, would differ from one that found the outer
ones in the cache, and a resumed run from the one that it continues.

So before a kernel is turned into machine code, and after everything was optimised, all functions in it but its own are
made private. Numba has no public way to ask for that: `PrivateLibrary` overrides the step of its code library that
hands the finished module over, and a pass puts it in the place of the usual library. A Numba that names that step
otherwise would never call the override, so `check_hooks` looks for it when this module is imported, and warns.
"""

import inspect
import warnings
from typing import Any

import numba
from llvmlite.binding import Linkage
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import AnnotateTypes

HOOKS = (("finalize", "_finalize_final_module"), ("_get_module_for_linking", "_shared_module"))
"""Methods of Numba's library, each with what it must use for `PrivateLibrary` to have an effect."""
TESTED_NUMBA = "0.68.1"
"""As in requirements.lock."""


class PrivateLibrary(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """The code of one kernel, of which nobody else sees more than its entry points."""

    def _finalize_final_module(self) -> None:
        module = self._final_module
        # For kernels that call this one: a copy in which everything may be merged with copies of the same.
        shared = module.clone()
        for function in shared.functions:
            if not function.is_declaration and function.linkage == Linkage.external:
                function.linkage = "linkonce_odr"
        self._shared_module = shared
        for function in module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = "internal"
        super()._finalize_final_module()


@register_pass(mutates_CFG=False, analysis_only=True)
class _OwnLibrary(AnalysisPass):  # type: ignore[misc]
    """Gives the compilation the library that its lowering will write to."""

    _name = "own_library"

    def __init__(self) -> None:
        AnalysisPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        state.library = PrivateLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()  # so that it can be cached
        return False


class PrivateCompiler(CompilerBase):  # type: ignore[misc]
    """Numba's compiler with a `PrivateLibrary`, for ``jit(pipeline_class=...)``."""

    def define_pipelines(self) -> list[Any]:
        """Return the usual passes, and the one that chooses the library."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OwnLibrary, AnnotateTypes)
        passes.finalize()
        return [passes]


def missing_hooks(library: type) -> list[str]:
    """Return the methods of `HOOKS` that the class has not, or that do not use what they should."""
    missing = []
    for method, used in HOOKS:
        code = getattr(inspect.unwrap(getattr(library, method, None)), "__code__", None)  # type: ignore[arg-type]
        if code is None or used not in code.co_names:
            missing.append(f"{method}() with {used}")
    return missing


def check_hooks(library: type) -> None:
    """Warn where the copies would silently stay visible to others."""
    missing = missing_hooks(library)
    if missing:
        warnings.warn(
            f"kernels cannot keep their inner copies to themselves. Needed: a Numba whose {library.__name__} has "
            f"{' and '.join(missing)}. Found: Numba {numba.__version__} without. Likely cause: it is newer than what "
            f"threadloom was tested with, and builds its code another way. Remedy: pip install numba=={TESTED_NUMBA}. "
            "Until then results may differ in their last bits between a process that compiled its kernels and one that "
            "loaded them, so that a resumed run need not equal the one that it continues.",
            RuntimeWarning,
            stacklevel=2,
        )


if not numba.config.DISABLE_JIT:
    check_hooks(JITCodeLibrary)
