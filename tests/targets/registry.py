"""The compiled kernels of the package, found in its modules."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from numba.core.registry import CPUDispatcher
from numba.core.typing.templates import builtin_registry

from threadloom import kernels
from threadloom.kernels import bits16, float32
from threadloom.kernels.common import KERNELS
from threadloom.kernels.compiling import Entry


class KernelName(NamedTuple):
    """Place of a kernel."""

    module: str  # below `threadloom.kernels`
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def all_kernels() -> dict[KernelName, Any]:
    """Return every compiled function that is defined in a module of `threadloom.kernels`."""
    found: dict[KernelName, Any] = {}
    for module in _modules():
        name = module.__name__.removeprefix(f"{kernels.__name__}.")
        for attribute, value in vars(module).items():
            if isinstance(value, CPUDispatcher) and value.py_func.__module__ == module.__name__:
                found[KernelName(name, attribute)] = value
    return found


def _modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        yield importlib.import_module(info.name)


def entry_kernels() -> list[Any]:
    """Return the kernels that compiled code calls through an `Entry`."""
    return [entry._function for entry in _entries()]


def _entries() -> Iterator[Entry]:
    for module in _modules():
        yield from (value for value in vars(module).values() if isinstance(value, Entry))


def reached_from(roots: Iterable[Any]) -> set[int]:
    """Return the ids of the kernels that are compiled with `roots`: theirs, and those that their source names.

    Functions that only dispatch, by ``overload``, are followed and included.
    """
    overloads = {
        id(function): template._overload_func
        for function, kind in builtin_registry.globals
        for template in getattr(kind, "templates", ())
        if hasattr(template, "_overload_func")
    }
    called = {id(entry.call): entry._function for entry in _entries()}
    pending, reached = list(roots), set()
    while pending:
        kernel = pending.pop()
        if id(kernel) not in reached:
            reached.add(id(kernel))
            for function in (getattr(kernel, "py_func", kernel), overloads.get(id(kernel))):
                if function is not None:
                    named = list(_named_objects(function.__code__, function.__globals__))
                    pending += [called[id(value)] for value in named if id(value) in called]
                    pending += [value for value in named if _is_kernel(value)]
    return reached


def _named_objects(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """Yield the objects whose global names are in `code`."""
    yield from (names[name] for name in code.co_names if name in names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named_objects(constant, names)


def _is_kernel(value: Any) -> bool:
    """Return True for kernels, and for functions of the package that may dispatch to kernels."""
    if isinstance(value, FunctionType):
        return value.__module__.startswith(kernels.__name__)
    return isinstance(value, CPUDispatcher)


def protocol_kernels() -> dict[str, Any]:
    """Return the kernels that `kernels.common.protocol` asks of every number format."""
    return {
        f"{room.__name__.rpartition('.')[2]}.{name}": getattr(room, name)
        for room in (float32, bits16)
        for names in KERNELS.values()
        for name in names
    }
