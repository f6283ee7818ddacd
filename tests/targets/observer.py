"""Observation of kernels while tests run: which are called, with what types, and how far results are from float64."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from llvmlite.binding import Linkage
from numba.core.registry import CPUDispatcher

from tests.kernels.bits16.support import paths_here
from tests.kernels.comparison import COMPARISONS, Comparison
from tests.kernels.machine_code import multiplies_tiles, vector_bits
from tests.targets.registry import KernelName, all_kernels, entry_kernels, reached_from
from tests.targets.worker import KernelReport, Report
from threadloom.kernels.simd.vector import LANES


class Observer:
    """Plugin of pytest. An error is attributed to every kernel that the test has called since its last comparison."""

    def __init__(self) -> None:
        self._kernels = all_kernels()
        self._names = {id(kernel): name for name, kernel in self._kernels.items()}
        self._calls: Counter[KernelName] = Counter()
        self._recent: set[KernelName] = set()
        self._compared = True  # False since the last call
        self._errors: dict[KernelName, Comparison] = {}
        self._report = Report()

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests of other processes than this one."""
        items[:] = [item for item in items if not _starts_processes(item)]

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_set_timer(self) -> bool:
        """Set no time limit: every test compiles, and that takes long on a slow or busy machine."""
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Observe one test."""
        self._recent.clear()
        with self._observed():
            return (yield)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the outcomes."""
        self._report.passed += report.when == "call" and report.passed
        if report.failed:
            self._report.failed.append(report.nodeid)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        call = CPUDispatcher.__call__

        def observed_call(kernel: Any, *arguments: Any, **named: Any) -> Any:
            self._called(kernel)
            return call(kernel, *arguments, **named)

        CPUDispatcher.__call__ = observed_call
        token = COMPARISONS.set(self._record)
        try:
            yield
        finally:
            COMPARISONS.reset(token)
            CPUDispatcher.__call__ = call

    def _called(self, kernel: Any) -> None:
        name = self._names.get(id(kernel))
        if name is not None:
            if self._compared:
                self._recent.clear()
                self._compared = False
            self._recent.add(name)
            self._calls[name] += 1

    def _record(self, comparison: Comparison) -> None:
        self._compared = True
        for name in self._recent:
            earlier = self._errors.get(name, Comparison(0.0, 0.0))
            self._errors[name] = Comparison(*np.fmax(earlier, comparison).tolist())

    def report(self) -> Report:
        """Return what was observed."""
        entries = {self._names[id(kernel)]: 0 for kernel in entry_kernels() if kernel.signatures}
        report = report_of(self._kernels, entries | self._calls, self._errors)
        report.dot_paths = tuple(path.name for path in paths_here())
        report.passed, report.failed = self._report.passed, self._report.failed
        return report


def _starts_processes(item: pytest.Item) -> bool:
    function: Any = getattr(item, "function", None)
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    module = vars(getattr(item, "module", None) or object)
    return (
        not {"subprocess", "run_without_compiler"}.isdisjoint(function.__code__.co_names)
        or "subprocess" in module.get("run", function).__code__.co_names
    )


def report_of(
    kernels: Mapping[KernelName, Any], calls: Mapping[KernelName, int], errors: Mapping[KernelName, Comparison]
) -> Report:
    """Return the report on the kernels of `calls`, which are compiled, and on those that they contain."""
    report = Report(lanes=LANES)
    reached = reached_from(kernels[name] for name in calls)
    for name, kernel in kernels.items():
        (report.compiled if id(kernel) in reached else report.unused).append(str(name))
    for name, count in calls.items():
        kernel = kernels[name]
        forms = _forms(kernel)
        code = "".join(machine_code(kernel, types) for types in forms)
        report.signatures += [(*name, types) for types in forms]
        error = errors.get(name)
        report.kernels[str(name)] = KernelReport(
            calls=count,
            error=error and error.error,
            of_bound=error and error.of_bound,
            bits=vector_bits(code),
            tiles=multiplies_tiles(code),
        )
    return report


def _forms(kernel: Any) -> list[Any]:
    """Return the argument types that a kernel is compiled for: one of those that differ only in gaps between rows."""
    return list({str(types).replace(", A)", ", C)"): types for types in kernel.signatures}.values())


def machine_code(kernel: Any, types: Any) -> str:
    """Return the assembly of a kernel, compiled in this process or loaded from the cache.

    The module for callers is kept before LLVM's passes, which are run on a copy of it, as for the kernel.
    """
    compiled = kernel.overloads[types]
    library = compiled.library.codegen.create_library("assembly")
    module = compiled.library._get_module_for_linking().clone()
    module.get_function(compiled.fndesc.mangled_name).linkage = Linkage.external  # otherwise no one needs it
    library._final_module = module
    library._optimize_final_module()
    return str(library.codegen._tm.emit_assembly(library._final_module))
