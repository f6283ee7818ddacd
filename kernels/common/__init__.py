"""Kernels and types that are the same in every number format, and the protocol of a format's kernels.

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
from threadloom.kernels.common.cross_entropy import cross_entropy_forward, exponentiate_row
from threadloom.kernels.common.embedding import embedding_backward
from threadloom.kernels.common.gelu import gelu, gelu_and_derivative
from threadloom.kernels.common.layernorm import EPSILON, Affine, row_statistics
from threadloom.kernels.common.protocol import KERNELS, MODEL_KERNELS, ModelKernels
from threadloom.kernels.common.reduction import CHUNK, sum_lanes
from threadloom.kernels.common.softmax import softmax_backward_row, softmax_rows
from threadloom.kernels.common.tensors import ATTENTION_TILE, Weights

__all__ = [
    "ATTENTION_TILE",
    "CHUNK",
    "EPSILON",
    "HEAD_SLICE",
    "KERNELS",
    "MODEL_KERNELS",
    "AccumulationTicket",
    "AdamWStep",
    "Affine",
    "ModelKernels",
    "Weights",
    "adamw_update",
    "cross_entropy_forward",
    "embedding_backward",
    "exponentiate_row",
    "gelu",
    "gelu_and_derivative",
    "mark_part_done",
    "model_parts",
    "row_statistics",
    "single_writer",
    "softmax_backward_row",
    "softmax_rows",
    "sum_lanes",
    "wait_for_predecessor",
]
