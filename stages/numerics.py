"""What the whole process must agree on for a run's results: the matrix product and its threads."""

from collections.abc import Iterator
from contextlib import contextmanager

from kernels import GemmBackend, gemm_backend
from pipeline import blas_threads
from stages.settings import Config, ConfigError


@contextmanager
def numerics(config: Config) -> Iterator[None]:
    """Run the block with the matrix product and the BLAS threads of a resolved configuration.

    Both are process-wide: enter it before a run's stages start, and let no other run be under way.
    """
    if config.gemm is None or config.threads.blas is None:
        raise ConfigError(
            "gemm",
            needed="a matrix product and its threads",
            found="null",
            cause="the configuration was not resolved",
            remedy="resolve(config, cores, ...) first",
        )
    with gemm_backend(GemmBackend(config.gemm.value)), blas_threads(config.threads.blas):
        yield
