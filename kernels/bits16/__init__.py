"""Layers and whole models in bfloat16 and float16. `kernels.float32` has the same file names for float32.

May import: compiling, simd, common, matmul, bits16/attention.
"""

from threadloom.kernels.bits16.adamw import (
    BLOCK as BLOCK,
    adamw_forecast_update_packed as adamw_forecast_update_packed,
    adamw_lead_update_packed as adamw_lead_update_packed,
    adamw_update_packed as adamw_update_packed,
    pack_rows as pack_rows,
)
from threadloom.kernels.bits16.attention import (
    attention_backward as attention_backward,
    attention_forward as attention_forward,
)
from threadloom.kernels.bits16.band_packing import pack_bands as pack_bands
from threadloom.kernels.bits16.banded_head import (
    PackedFactors as PackedFactors,
    banded_backward as banded_backward,
    banded_loss as banded_loss,
)
from threadloom.kernels.bits16.cross_entropy import (
    cross_entropy_backward as cross_entropy_backward,
    objective_backward as objective_backward,
)
from threadloom.kernels.bits16.embedding import (
    embedding_forward as embedding_forward,
    token_embedding_forward as token_embedding_forward,
)
from threadloom.kernels.bits16.gelu import gelu_backward as gelu_backward, gelu_forward as gelu_forward
from threadloom.kernels.bits16.gpt2 import (
    blocks_backward as blocks_backward,
    blocks_forward as blocks_forward,
    head_backward as head_backward,
    head_loss as head_loss,
)
from threadloom.kernels.bits16.gpt2_banded import (
    BandedPackedWeights as BandedPackedWeights,
    BandedWeights16 as BandedWeights16,
)
from threadloom.kernels.bits16.head import (
    ProjectionScratch as ProjectionScratch,
    projection_backward as projection_backward,
    projection_loss as projection_loss,
)
from threadloom.kernels.bits16.layernorm import (
    LayerNormGradients as LayerNormGradients,
    NormalizedRows as NormalizedRows,
    layernorm_apply as layernorm_apply,
    layernorm_apply_transposed as layernorm_apply_transposed,
    layernorm_backward as layernorm_backward,
    layernorm_forward as layernorm_forward,
)
from threadloom.kernels.bits16.linear import (
    linear_backward_bias as linear_backward_bias,
    linear_backward_input as linear_backward_input,
    linear_backward_weight as linear_backward_weight,
    linear_forward as linear_forward,
    linear_gelu_forward as linear_gelu_forward,
    linear_residual_forward as linear_residual_forward,
    logits_backward_input as logits_backward_input,
    logits_forward as logits_forward,
)
from threadloom.kernels.bits16.lora import (
    LoraBackward as LoraBackward,
    LoraInput as LoraInput,
    adapted_backward_input as adapted_backward_input,
    adapted_forward as adapted_forward,
    adapted_gelu_forward as adapted_gelu_forward,
    adapted_residual_forward as adapted_residual_forward,
    lora_backward_weight as lora_backward_weight,
    lora_input as lora_input,
    prepare_lora as prepare_lora,
)
from threadloom.kernels.bits16.models import (
    GPT2 as GPT2,
    GPT2_BANDED as GPT2_BANDED,
    GPT2_RESIDUES as GPT2_RESIDUES,
    GPT2_TEAM as GPT2_TEAM,
    LLAMA as LLAMA,
    LLAMA_TEAM as LLAMA_TEAM,
)
from threadloom.kernels.bits16.residue_embedding import residue_embedding_forward as residue_embedding_forward
from threadloom.kernels.bits16.residue_head import residue_backward as residue_backward, residue_loss as residue_loss
from threadloom.kernels.bits16.rmsnorm import (
    RmsNormGradients as RmsNormGradients,
    rmsnorm_apply as rmsnorm_apply,
    rmsnorm_apply_transposed as rmsnorm_apply_transposed,
    rmsnorm_backward as rmsnorm_backward,
    rmsnorm_forward as rmsnorm_forward,
)
from threadloom.kernels.bits16.tensors import (
    Activations16 as Activations16,
    AdaptedWeight as AdaptedWeight,
    Fp16UpcastScratch as Fp16UpcastScratch,
    LlamaActivations16 as LlamaActivations16,
    LlamaPackedWeights as LlamaPackedWeights,
    LlamaScratch16 as LlamaScratch16,
    LlamaWeights16 as LlamaWeights16,
    PackedPair as PackedPair,
    PackedWeight as PackedWeight,
    PackedWeights as PackedWeights,
    Scratch16 as Scratch16,
    SecondProduct as SecondProduct,
    ThreadScratch as ThreadScratch,
    Weights16 as Weights16,
)
