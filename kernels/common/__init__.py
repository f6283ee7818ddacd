"""Kernels and types that are the same in every number format: tensors, ordered accumulation, reduction, AdamW.

May import: compiling, simd.
"""

from threadloom.kernels.common.accumulation import (
    HEAD_SLICE,
    AccumulationTicket,
    mark_part_done,
    model_parts,
    single_writer,
    wait_for_predecessor,
)
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.common.reduction import CHUNK, sum_lanes
from threadloom.kernels.common.tensors import ATTENTION_TILE, Activations, Scratch, Weights

__all__ = [
    "ATTENTION_TILE",
    "CHUNK",
    "HEAD_SLICE",
    "AccumulationTicket",
    "Activations",
    "AdamWStep",
    "Scratch",
    "Weights",
    "adamw_update",
    "mark_part_done",
    "model_parts",
    "single_writer",
    "sum_lanes",
    "wait_for_predecessor",
]
