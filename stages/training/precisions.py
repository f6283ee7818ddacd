"""The arithmetic of each precision. The classes of 16 bits are imported on first use, and their kernels with them."""

from threadloom.stages.config import NO_DROPOUT, DropoutConfig, Precision, ResolvedConfig
from threadloom.stages.models import Geometry
from threadloom.stages.step import Compute, Teams
from threadloom.stages.step.float32 import DividedFloat32Compute, Float32Compute


def compute_for(
    precision: Precision,
    geometry: Geometry,
    sequences: int,
    *,
    recompute: bool = False,
    borders: bool = False,
    dropout: DropoutConfig = NO_DROPOUT,
) -> Compute:
    """Return the arithmetic of a resolved precision, for micro-batches of `sequences` sequences.

    `recompute` is the setting; it has no effect in float32. With `borders` the slots of micro-batches have those of
    documents.

    bf16x3 is float32 with another GEMM (`stages.resolve.gemm_settings`).
    """
    if precision in (Precision.FLOAT32, Precision.BF16X3):
        return Float32Compute(geometry, sequences, borders=borders, dropout=dropout)
    from threadloom.stages.step.bits16 import Bits16Compute

    return Bits16Compute(precision, geometry, sequences, recompute=recompute, borders=borders, dropout=dropout)


def divided_compute(config: ResolvedConfig, teams: Teams) -> Compute:
    """Return the arithmetic of forward and backward by teams; `stages.resolve.team` says for which configurations."""
    geometry, sequences, borders, dropout = config.geometry(), config.micro_batch, config.bordered, config.dropout
    if config.precision is Precision.FLOAT32:
        return DividedFloat32Compute(geometry, sequences, teams, borders=borders, dropout=dropout)
    from threadloom.stages.step.bits16 import DividedBf16Compute

    return DividedBf16Compute(geometry, sequences, teams, recompute=config.recompute, borders=borders, dropout=dropout)
