"""The kernels of an update in the architecture and precision of a configuration, timed one by one."""

from collections.abc import Mapping

from threadloom.stages.config import ModelArchitecture, ResolvedConfig
from threadloom.stages.resolve import gemm_settings
from threadloom.stages.tools.bench.gpt2_float32 import Gpt2Float32Bench
from threadloom.stages.tools.bench.kernel_bench import BITS16, KernelBench
from threadloom.stages.tools.bench.kernel_case import time_case
from threadloom.stages.tools.bench.llama_float32 import LlamaFloat32Bench
from threadloom.stages.tools.bench.roofline import KernelTime, Peaks

FLOAT32: Mapping[ModelArchitecture, type[KernelBench]] = {
    ModelArchitecture.GPT2: Gpt2Float32Bench,
    ModelArchitecture.LLAMA: LlamaFloat32Bench,
}
"""Architecture → its kernels in float32. Those in 16 bits are in `bits16_benches`, which loads them."""


def kernel_bench(config: ResolvedConfig) -> KernelBench:
    """Return the kernels of a configuration, in its precision."""
    if config.precision not in BITS16:
        return FLOAT32[config.model.architecture](config)
    from threadloom.stages.tools.bench.bits16_benches import BITS16_BENCHES

    return BITS16_BENCHES[config.model.architecture](config)


def measure_kernels(config: ResolvedConfig, peaks: Peaks, seconds: float) -> list[KernelTime]:
    """Time every kernel of a configuration, all together for about `seconds` seconds."""
    with gemm_settings(config):
        cases = kernel_bench(config).cases()
        return [time_case(case, peaks, seconds / len(cases), config.precision) for case in cases]
