"""Causal self-attention in bfloat16 and float16.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.bits16.attention.layer import attention_backward, attention_forward
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_scratch_shapes

__all__ = [
    "AttentionScratch",
    "attention_backward",
    "attention_forward",
    "attention_scratch_shapes",
]
