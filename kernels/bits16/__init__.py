"""Layers and whole blocks in bfloat16 and float16. `kernels.float32` has the same file names for float32.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.bits16.adamw import BLOCK, adamw_update_packed, pack_rows
from threadloom.kernels.bits16.embedding import embedding_forward_low
from threadloom.kernels.bits16.gelu import bias_backward_low, cross_entropy_backward_low, gelu_backward_low
from threadloom.kernels.bits16.gpt2 import (
    blocks_backward_low,
    blocks_forward_low,
    head_backward_low,
    head_loss_low,
)
from threadloom.kernels.bits16.layernorm import layernorm_apply_turned, layernorm_backward_low, layernorm_forward_low
from threadloom.kernels.bits16.linear import product_float, product_gelu, product_outer, product_rounded
from threadloom.kernels.bits16.tensors import Form, Forms, LowActivations, LowScratch, Wide, Workspace

__all__ = [
    "BLOCK",
    "Form",
    "Forms",
    "LowActivations",
    "LowScratch",
    "Wide",
    "Workspace",
    "adamw_update_packed",
    "bias_backward_low",
    "blocks_backward_low",
    "blocks_forward_low",
    "cross_entropy_backward_low",
    "embedding_forward_low",
    "gelu_backward_low",
    "head_backward_low",
    "head_loss_low",
    "layernorm_apply_turned",
    "layernorm_backward_low",
    "layernorm_forward_low",
    "pack_rows",
    "product_float",
    "product_gelu",
    "product_outer",
    "product_rounded",
]
