"""How many threads divide the work of one micro-batch: more than one if a batch has fewer micro-batches than threads.

A team computes the bits of one thread, but there are kernels of teams only for a part of the configurations.
"""

from threadloom.stages.config import Config, ConfigError, Gemm, LlamaConfig, Precision
from threadloom.stages.models import Geometry


def choose_team(
    config: Config, geometry: Geometry, gemm: Gemm, workers: int, micro_batches: int, *, shared_lanes: bool
) -> int:
    """Return the number of threads that share a micro-batch: `threads.team` if it is set, otherwise a choice.

    Raises ConfigError if it is set to more than 1 for a configuration without kernels of teams.
    """
    wanted, obstacle = config.threads.team, _obstacle(config, geometry, gemm, shared_lanes=shared_lanes)
    if wanted is not None:
        if wanted > 1 and obstacle:
            raise ConfigError(
                "threads.team", expected=f"1 with {obstacle}", got=f"{wanted}",
                cause="there are no kernels that divide such a micro-batch among threads",
                hint="leave it open",
            )  # fmt: skip
        return wanted
    if obstacle or config.delay:  # with a delay the passes of different batches are at work at the same time
        return 1
    return max(1, workers // micro_batches)


def _obstacle(config: Config, geometry: Geometry, gemm: Gemm, *, shared_lanes: bool) -> str | None:
    """Return the setting for which there are no kernels of teams, None if there is none."""
    dropout = config.dropout
    obstacles = {
        "norms of queries and keys": isinstance(config.model, LlamaConfig) and config.model.qk_norm,
        f"precision={config.precision.value}": config.precision not in (Precision.FLOAT32, Precision.BF16),
        # A library may round a part of a product differently; bfloat16 has its own products.
        f"gemm_backend={gemm.value}": config.precision is Precision.FLOAT32 and gemm is not Gemm.NUMBA,
        "factors of the token embedding": bool(geometry.bands or geometry.residues),
        "lora.rank": geometry.lora is not None,
        "dropout.residual or dropout.attention": dropout.residual > 0 or dropout.attention > 0,
        "terms of the loss": config.loss.has_terms,
        "shared_lanes=true": shared_lanes,
    }
    if obstacle := next((name for name, found in obstacles.items() if found), None):
        return obstacle
    from threadloom.kernels.compiling import JIT_ENABLED  # loads Numba

    return None if JIT_ENABLED else "NUMBA_DISABLE_JIT=1"  # NumPy may round a part of a product differently
