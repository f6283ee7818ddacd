"""Layers and whole models in bfloat16 and float16. `kernels.float32` has the same file names for float32.

May import: compiling, simd, common, matmul, bits16/attention.
"""

from threadloom.kernels.bits16.adamw import BLOCK, adamw_update_packed, pack_rows
from threadloom.kernels.bits16.attention import attention_backward, attention_forward
from threadloom.kernels.bits16.cross_entropy import cross_entropy_backward
from threadloom.kernels.bits16.embedding import embedding_forward
from threadloom.kernels.bits16.gelu import gelu_backward, gelu_forward
from threadloom.kernels.bits16.gpt2 import blocks_backward, blocks_forward, head_backward, head_loss
from threadloom.kernels.bits16.layernorm import (
    LayerNormGradients,
    NormalizedRows,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_forward,
    layernorm_residual_backward,
)
from threadloom.kernels.bits16.linear import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
    logits_backward_input,
    logits_forward,
)
from threadloom.kernels.bits16.tensors import (
    Activations16,
    Fp16UpcastScratch,
    PackedPair,
    PackedWeight,
    PackedWeights,
    Scratch16,
    ThreadScratch,
    Weights16,
)

__all__ = [
    "BLOCK",
    "Activations16",
    "Fp16UpcastScratch",
    "LayerNormGradients",
    "NormalizedRows",
    "PackedPair",
    "PackedWeight",
    "PackedWeights",
    "Scratch16",
    "ThreadScratch",
    "Weights16",
    "adamw_update_packed",
    "attention_backward",
    "attention_forward",
    "blocks_backward",
    "blocks_forward",
    "cross_entropy_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "head_backward",
    "head_loss",
    "layernorm_apply_transposed",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_residual_backward",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_gelu_forward",
    "linear_residual_forward",
    "logits_backward_input",
    "logits_forward",
    "pack_rows",
]
