"""Layers and whole models in float32. `kernels.bits16` has the same file names for the 16-bit formats.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.float32.attention import attention_backward, attention_forward
from threadloom.kernels.float32.cross_entropy import cross_entropy_backward
from threadloom.kernels.float32.decode import DecodeScratch, KVCache, decode_token, next_logits, prefill_cache
from threadloom.kernels.float32.embedding import embedding_forward
from threadloom.kernels.float32.gelu import gelu_backward, gelu_forward
from threadloom.kernels.float32.gpt2 import blocks_backward, blocks_forward, head_backward, head_loss
from threadloom.kernels.float32.layernorm import (
    RowStatistics,
    layernorm_apply,
    layernorm_backward,
    layernorm_forward,
    layernorm_residual_backward,
)
from threadloom.kernels.float32.linear import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
    logits_backward_input,
    logits_forward,
)
from threadloom.kernels.float32.tensors import Activations, Scratch

__all__ = [
    "Activations",
    "DecodeScratch",
    "KVCache",
    "RowStatistics",
    "Scratch",
    "attention_backward",
    "attention_forward",
    "blocks_backward",
    "blocks_forward",
    "cross_entropy_backward",
    "decode_token",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "head_backward",
    "head_loss",
    "layernorm_apply",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_residual_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_residual_forward",
    "logits_backward_input",
    "logits_forward",
    "next_logits",
    "prefill_cache",
]
