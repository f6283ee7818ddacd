"""The kernels of an update in the precision of a configuration, timed one by one."""

from threadloom.stages.config import ResolvedConfig
from threadloom.stages.resolve import gemm_settings
from threadloom.stages.tools.bench.kernel_bench import BITS16, KernelBench
from threadloom.stages.tools.bench.kernel_case import time_case
from threadloom.stages.tools.bench.roofline import KernelTime, Peaks


def kernel_bench(config: ResolvedConfig) -> KernelBench:
    """Return the kernels of a configuration, in its precision."""
    if config.precision in BITS16:
        from threadloom.stages.tools.bench.kernels_bits16 import Bits16Bench

        return Bits16Bench(config)
    from threadloom.stages.tools.bench.kernels_float32 import Float32Bench

    return Float32Bench(config)


def measure_kernels(config: ResolvedConfig, peaks: Peaks, seconds: float) -> list[KernelTime]:
    """Time every kernel of a configuration, all together for about `seconds` seconds."""
    with gemm_settings(config):
        cases = kernel_bench(config).cases()
        return [time_case(case, peaks, seconds / len(cases), config.precision) for case in cases]
