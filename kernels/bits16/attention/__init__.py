"""Causal self-attention in bfloat16 and float16.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.bits16.attention.layer import (
    attention_backward as attention_backward,
    attention_forward as attention_forward,
)
from threadloom.kernels.bits16.attention.scratch import (
    AttentionScratch as AttentionScratch,
    attention_scratch_shapes as attention_scratch_shapes,
)
