"""Translation of Numba's intermediate code to LLVM's, without copies of tuples that a kernel only borrows.

A kernel of a whole model gets its weights, activations and scratch as nested tuples of some 150 arrays, a thousand
numbers. Numba keeps a tuple in memory on the stack, reads the whole of it for each of its fields, copies it for each
function that is copied into the kernel (`jit_inline_body`), and counts the references to every array in it, each time.
In a kernel that only borrows them (`kernels.compiling.borrowing`) `KernelLower` counts no references, reads a field
alone, and lets a variable that is always the same part of an argument be that part.
"""

from typing import Any

from numba.core import cgutils, ir
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering

from threadloom.kernels.compiling.borrowing import View, borrows_everything, field_of, views_of_arguments

_USED = ("_alloca_var", "_disable_sroa_like_opt", "_singly_assigned_vars", "delvar", "getvar", "storevar", "varmap")
"""Attributes of Numba's class on which `KernelLower` relies. A Numba without them compiles as usual, more slowly."""


class KernelLower(Lower):  # type: ignore[misc]  # Numba has no types
    """Numba's translation of one function, which it calls with its own arguments."""

    context: Any
    _views: dict[str, View]

    def init(self) -> None:
        """Find the variables that need no memory."""
        super().init()
        self._views, self._counts = {}, True
        known = all(hasattr(self, name) for name in _USED)
        if known and self.generator_info is None and not self._disable_sroa_like_opt:
            models = self.context.data_model_manager
            self._counts = not borrows_everything(
                self.blocks, self.typeof, self.fndesc.restype, lambda kind: models[kind].contains_nrt_meminfo()
            )
        if not self._counts:
            self._views = views_of_arguments(self.blocks, self.typeof)
            self._singly_assigned_vars -= self._views.keys()  # which would be values instead of memory

    def lower(self) -> None:
        """Translate the function; its wrappers, which Numba adds afterwards, count references."""
        context = self.context
        if not self._counts:
            self.context = context.subtarget(enable_nrt=False)
        try:
            super().lower()
        finally:
            self.context = context

    def lower_inst(self, inst: Any) -> None:
        """Translate a statement, unless it assigns a part of an argument."""
        if isinstance(inst, ir.Assign) and self._is_part(inst.target.name):
            return
        super().lower_inst(inst)

    def lower_expr(self, resty: Any, expr: Any) -> Any:
        """Translate an expression; a kernel that borrows reads a field from the memory of the tuple, if it has some."""
        index = field_of(expr, self.typeof)
        if self._counts or index is None or not self._has_memory(expr.value.name):
            return super().lower_expr(resty, expr)
        field = cgutils.gep_inbounds(self.builder, self.getvar(expr.value.name), 0, index)
        return self.context.cast(self.builder, self.builder.load(field), self.typeof(expr.value.name)[index], resty)

    def getvar(self, name: str) -> Any:
        """Return the address of a variable."""
        if self._is_part(name) and name not in self.varmap:
            argument, path = self._views[name]
            with self.builder.goto_entry_block():  # so that the address is known wherever the variable is used
                self.varmap[name] = cgutils.gep_inbounds(self.builder, self.getvar(argument), 0, *path)
        return super().getvar(name)

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        """Store a variable; without reference counts, its old value is not read."""
        if self._counts or argidx is not None or name in self._singly_assigned_vars:
            super().storevar(value, name, argidx)
            return
        self._alloca_var(name, self.typeof(name))
        self.builder.store(value, self.getvar(name))

    def delvar(self, name: str) -> None:
        """Release a variable, which is nothing to do without reference counts."""
        if self._counts:
            super().delvar(name)

    def _alloca_var(self, name: str, fetype: Any) -> None:
        if not self._is_part(name):
            super()._alloca_var(name, fetype)

    def _is_part(self, name: str) -> bool:
        """Return True for a variable that is part of an argument, but not for the argument's own."""
        return name in self._views and self._views[name] != (name, ())

    def _has_memory(self, name: str) -> bool:
        return name in self.varmap or self._is_part(name)


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(BaseNativeLowering):  # type: ignore[misc]
    """Compiler pass that translates a kernel."""

    _name = "kernel_lowering"

    @property
    def lowering_class(self) -> type[KernelLower]:
        """Return the class that translates."""
        return KernelLower
