"""What the whole process must agree on for a run's results: the matrix product and its threads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from threadloom.kernels import GemmBackend, gemm_backend
from threadloom.pipeline import blas_threads
from threadloom.stages.config import Precision, ResolvedConfig


@contextmanager
def numerics(config: ResolvedConfig) -> Iterator[None]:
    """Run the block with the float32 matrix product and the BLAS threads of a configuration.

    In bf16x3 the product is that of three bfloat16 products, whatever `gemm_backend` is, and all else is float32. A
    bf16 run multiplies no float32 matrices, and the process keeps the product that it has. Both are process-wide: enter
    it before a run's stages start, and let no other run be under way.
    """
    with ExitStack() as switches:
        if config.precision is Precision.BF16X3:
            switches.enter_context(gemm_backend(GemmBackend.BF16X3))
        elif config.precision is not Precision.BF16:
            switches.enter_context(gemm_backend(GemmBackend(config.gemm_backend.value)))
        switches.enter_context(blas_threads(config.threads.blas))  # after it: asking for BLAS may be what loads it
        yield
