"""What the compiled code may use: the features of the target that Numba compiles for."""

import llvmlite.binding
import numba


def target_features() -> dict[str, bool]:
    """Return the features that Numba compiles for: the host's, or what ``NUMBA_CPU_FEATURES`` says.

    An intrinsic of a feature that the target lacks makes LLVM abort the process, so it must not even be compiled.
    """
    given = numba.config.CPU_FEATURES
    if given is not None:
        return {name[1:]: name[0] == "+" for name in str(given).split(",") if name}
    try:
        return dict(llvmlite.binding.get_host_cpu_features())
    except RuntimeError:
        return {}


TARGET = target_features()
"""The features, by LLVM's names; one that is not there is absent or False."""
