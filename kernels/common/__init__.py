"""Kernels and types that are the same in every number format: tensors, ordered accumulation, reduction, AdamW.

May import: compiling, simd.
"""

from threadloom.kernels.common.accumulation import HEAD_SLICE, Turn, end_turn, model_parts, own_turn, wait_turn
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.common.reduction import CHUNK, sum_lanes
from threadloom.kernels.common.tensors import ATTENTION_TILE, Activations, Scratch, Weights

__all__ = [
    "ATTENTION_TILE",
    "CHUNK",
    "HEAD_SLICE",
    "Activations",
    "AdamWStep",
    "Scratch",
    "Turn",
    "Weights",
    "adamw_update",
    "end_turn",
    "model_parts",
    "own_turn",
    "sum_lanes",
    "wait_turn",
]
