"""Features of the target that Numba compiles for."""

import llvmlite.binding
import numba


def target_features() -> dict[str, bool]:
    """Return the features that Numba compiles for: those of the host, or those in ``NUMBA_CPU_FEATURES``.

    An intrinsic that needs a missing feature makes LLVM abort the process, so it must not even be compiled.
    """
    given = numba.config.CPU_FEATURES
    if given is not None:
        return {name[1:]: name[0] == "+" for name in str(given).split(",") if name}
    try:
        return dict(llvmlite.binding.get_host_cpu_features())
    except RuntimeError:
        return {}


TARGET = target_features()
"""The features, by LLVM's names; a missing one is absent or False."""
