"""Features of the target that Numba compiles for, which need not be the processor that runs the code."""

import numba
from numba.core.codegen import get_host_cpu_features


def target_features() -> dict[str, bool]:
    """Return the features that Numba compiles for: those in ``NUMBA_CPU_FEATURES``, or those of the host.

    They are read from the text that Numba passes to LLVM, so that ``NUMBA_ENABLE_AVX=0`` counts too. An intrinsic that
    needs a missing feature makes LLVM abort the process, so it must not even be compiled.
    """
    given = numba.config.CPU_FEATURES
    text = str(get_host_cpu_features() if given is None else given)
    return {name[1:]: name[0] == "+" for name in text.split(",") if name}


TARGET = target_features()
"""The features, by LLVM's names; a missing one is absent or False."""
