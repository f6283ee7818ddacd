"""Layers and whole models in float32. `kernels.bits16` has the same file names for the 16-bit formats.

May import: compiling, simd, common, matmul.
"""

from threadloom.kernels.float32.attention import (
    attention_backward as attention_backward,
    attention_forward as attention_forward,
)
from threadloom.kernels.float32.band_embedding import derive_bands as derive_bands, fold_bands as fold_bands
from threadloom.kernels.float32.banded_head import banded_backward as banded_backward, banded_loss as banded_loss
from threadloom.kernels.float32.blocks8 import (
    LARGEST_ERROR as LARGEST_ERROR,
    blocks8_from_float32 as blocks8_from_float32,
    blocks8_shape as blocks8_shape,
)
from threadloom.kernels.float32.cross_entropy import (
    cross_entropy_backward as cross_entropy_backward,
    objective_backward as objective_backward,
)
from threadloom.kernels.float32.decode import (
    DecodeScratch as DecodeScratch,
    decode_token as decode_token,
    next_logits as next_logits,
)
from threadloom.kernels.float32.embedding import (
    embedding_forward as embedding_forward,
    token_embedding_forward as token_embedding_forward,
)
from threadloom.kernels.float32.gelu import gelu_backward as gelu_backward, gelu_forward as gelu_forward
from threadloom.kernels.float32.gpt2 import (
    blocks_backward as blocks_backward,
    blocks_forward as blocks_forward,
    head_backward as head_backward,
    head_loss as head_loss,
)
from threadloom.kernels.float32.head import (
    projection_backward as projection_backward,
    projection_loss as projection_loss,
)
from threadloom.kernels.float32.layernorm import (
    RowStatistics as RowStatistics,
    layernorm_apply as layernorm_apply,
    layernorm_backward as layernorm_backward,
    layernorm_forward as layernorm_forward,
)
from threadloom.kernels.float32.linear import (
    linear_backward_bias as linear_backward_bias,
    linear_backward_input as linear_backward_input,
    linear_backward_weight as linear_backward_weight,
    linear_forward as linear_forward,
    linear_residual_forward as linear_residual_forward,
    logits_backward_input as logits_backward_input,
    logits_forward as logits_forward,
)
from threadloom.kernels.float32.llama_decode import LlamaDecodeScratch as LlamaDecodeScratch
from threadloom.kernels.float32.lora import prepare_lora as prepare_lora
from threadloom.kernels.float32.models import (
    GPT2 as GPT2,
    GPT2_BANDED as GPT2_BANDED,
    GPT2_DECODE as GPT2_DECODE,
    GPT2_RESIDUES as GPT2_RESIDUES,
    GPT2_TEAM as GPT2_TEAM,
    LLAMA as LLAMA,
    LLAMA_DECODE as LLAMA_DECODE,
    LLAMA_TEAM as LLAMA_TEAM,
    DecodeKernels as DecodeKernels,
)
from threadloom.kernels.float32.one_token import (
    KVCache as KVCache,
    copy_rows as copy_rows,
    prefill_cache as prefill_cache,
)
from threadloom.kernels.float32.residue_embedding import residue_embedding_forward as residue_embedding_forward
from threadloom.kernels.float32.residue_head import residue_backward as residue_backward, residue_loss as residue_loss
from threadloom.kernels.float32.rmsnorm import (
    rmsnorm_apply as rmsnorm_apply,
    rmsnorm_backward as rmsnorm_backward,
    rmsnorm_forward as rmsnorm_forward,
    rmsnorm_row as rmsnorm_row,
)
from threadloom.kernels.float32.rotated import (
    rotated_adamw as rotated_adamw,
    rotated_adamw_forecast as rotated_adamw_forecast,
)
from threadloom.kernels.float32.stored_matrices import (
    float32_from_blocks8 as float32_from_blocks8,
    float32_from_packed as float32_from_packed,
    packed_from_blocks8 as packed_from_blocks8,
)
from threadloom.kernels.float32.tensors import (
    Activations as Activations,
    LlamaActivations as LlamaActivations,
    LlamaScratch as LlamaScratch,
    Scratch as Scratch,
)
