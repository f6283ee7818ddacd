"""The process-wide GEMM backend and BLAS thread count of a computation: every command computes within one of these."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from loguru import logger

from threadloom.pipeline import blas_threads
from threadloom.stages.config import Gemm, Precision, ResolvedConfig

if TYPE_CHECKING:  # loads Numba
    from threadloom.kernels.matmul import GemmVariant, ProductKind


@contextmanager
def gemm_settings(
    config: ResolvedConfig, *, variants: "Mapping[ProductKind, GemmVariant] | None" = None
) -> Iterator[None]:
    """Set the GEMM backend and the BLAS threads of a configuration while the context is open.

    Numba's GEMM runs in `variants`, or, if they are None, in those that were measured on this machine for the shapes of
    the model, if any were; the bits are the same in all.

    In bf16x3 the backend is that of three bfloat16 products, regardless of `config.gemm_backend`; bf16 multiplies
    float32 matrices only in rotated bases, and leaves the backend as it is without. Both settings are process-wide:
    enter the context before the stages of a run start, and while no other run is active.
    """
    from threadloom.kernels import (
        GemmBackend,
        flushing_blas_threads,
        gemm_backend,
    )  # loads Numba, which reading a configuration must not

    with ExitStack() as switches:
        if config.precision is Precision.BF16X3:
            switches.enter_context(gemm_backend(GemmBackend.BF16X3))
        elif config.precision is not Precision.BF16 or config.optimizer.rotation:
            switches.enter_context(gemm_backend(GemmBackend(config.gemm_backend.value)))
            if config.gemm_backend is Gemm.NUMBA:
                from threadloom.kernels.matmul import gemm_variants

                switches.enter_context(gemm_variants(_kept_variants(config) if variants is None else variants))
        # The backend comes first: asking for BLAS may load it, and only a loaded library has a thread count.
        switches.enter_context(blas_threads(config.threads.blas))
        if config.threads.blas > 1 and not switches.enter_context(flushing_blas_threads()):
            logger.warning(
                "the threads of this BLAS compute with subnormal numbers, which kernels flush to zero: a diverging run "
                "may become slow; threads.blas=1 avoids it"
            )
        yield


def _kept_variants(config: ResolvedConfig) -> "Mapping[ProductKind, GemmVariant]":
    from threadloom.stages.speeds import kept_variants, product_shapes

    return kept_variants(product_shapes(config))


@contextmanager
def float32_settings() -> Iterator[None]:
    """Use one BLAS thread while the context is open, for computations in float32 without a configuration.

    The GEMM backend is that of this processor. As in a run with the default `threads.blas`, results then depend neither
    on the number of cores nor on the threads of BLAS, which keep subnormal numbers.
    """
    import threadloom.kernels  # noqa: F401 - loads the BLAS of the backend: only a loaded library has a thread count

    with blas_threads(1):
        yield
