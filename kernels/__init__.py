"""The arithmetic: Numba kernels in forward/backward pairs, on arrays that the caller owns, without state or allocation.

Layering: this package imports nothing of `pipeline` or `stages`. SciPy's BLAS is loaded when it is first needed, with
the kernel set that fits the processor (`blas_info` tells); that works only while nothing else has loaded it.

Every kernel holds no GIL, gives the same bits for the same input in whichever thread, and checks no bounds: shapes,
token ids and sizes must be right before it is called.
"""

from threadloom.kernels.common.accumulation import Turn, own_turn
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.common.reduction import CHUNK, sum_lanes
from threadloom.kernels.common.tensors import ATTENTION_TILE, Activations, Floats, Scratch, TokenIds, Weights
from threadloom.kernels.float32.attention import attention_backward, attention_forward
from threadloom.kernels.float32.cross_entropy import cross_entropy_backward, cross_entropy_forward
from threadloom.kernels.float32.decode import DecodeScratch, KVCache, decode_token, next_logits, prefill_cache
from threadloom.kernels.float32.embedding import embedding_backward, embedding_forward
from threadloom.kernels.float32.gelu import gelu_backward, gelu_forward
from threadloom.kernels.float32.layernorm import layernorm_apply, layernorm_backward, layernorm_forward
from threadloom.kernels.float32.linear import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
)
from threadloom.kernels.float32.transformer import blocks_backward, blocks_forward, head_backward, head_loss
from threadloom.kernels.matmul.blas import BlasInfo, GemmBackend, blas_info, gemm, gemm_backend

__all__ = [
    "ATTENTION_TILE",
    "CHUNK",
    "Activations",
    "AdamWStep",
    "BlasInfo",
    "DecodeScratch",
    "Floats",
    "GemmBackend",
    "KVCache",
    "Scratch",
    "TokenIds",
    "Turn",
    "Weights",
    "adamw_update",
    "attention_backward",
    "attention_forward",
    "blas_info",
    "blocks_backward",
    "blocks_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "decode_token",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "gemm",
    "gemm_backend",
    "head_backward",
    "head_loss",
    "layernorm_apply",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_residual_forward",
    "next_logits",
    "own_turn",
    "prefill_cache",
    "sum_lanes",
]
