"""The kernels of an update in 16 bits, by architecture."""

from collections.abc import Mapping

from threadloom.stages.config import ModelArchitecture
from threadloom.stages.tools.bench.gpt2_bits16 import Gpt2Bits16Bench
from threadloom.stages.tools.bench.kernel_bench import KernelBench
from threadloom.stages.tools.bench.llama_bits16 import LlamaBits16Bench

BITS16_BENCHES: Mapping[ModelArchitecture, type[KernelBench]] = {
    ModelArchitecture.GPT2: Gpt2Bits16Bench,
    ModelArchitecture.LLAMA: LlamaBits16Bench,
}
"""Architecture → its kernels in 16 bits."""
