"""Causal self-attention in bfloat16 and float16.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.bits16.attention.layer import (
    attention_backward as attention_backward,
    attention_forward as attention_forward,
    attention_heads_backward as attention_heads_backward,
    attention_heads_forward as attention_heads_forward,
)
from threadloom.kernels.bits16.attention.scratch import (
    AttentionScratch as AttentionScratch,
    attention_example as attention_example,
    attention_scratch_shapes as attention_scratch_shapes,
)
