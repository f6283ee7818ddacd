"""Kernels and types that are the same in every number format, and the protocol of a format's kernels.

May import: compiling, simd.
"""

from threadloom.kernels.common.accumulation import (
    HEAD_SLICE as HEAD_SLICE,
    AccumulationTicket as AccumulationTicket,
    last_head_part as last_head_part,
    mark_part_done as mark_part_done,
    mlp_part as mlp_part,
    model_parts as model_parts,
    single_writer as single_writer,
    wait_for_predecessor as wait_for_predecessor,
)
from threadloom.kernels.common.adamw import (
    AdamWFactors as AdamWFactors,
    AdamWStep as AdamWStep,
    adamw_element as adamw_element,
    adamw_factors as adamw_factors,
    adamw_update as adamw_update,
)
from threadloom.kernels.common.adamw_delayed import (
    DelayedAdamWFactors as DelayedAdamWFactors,
    DelayedAdamWStep as DelayedAdamWStep,
    adamw_forecast_element as adamw_forecast_element,
    adamw_forecast_update as adamw_forecast_update,
    adamw_lead_element as adamw_lead_element,
    adamw_lead_update as adamw_lead_update,
    delayed_adamw_factors as delayed_adamw_factors,
)
from threadloom.kernels.common.adamw_rotated import (
    rotated_directions as rotated_directions,
    rotated_forecast_update as rotated_forecast_update,
    rotated_update as rotated_update,
)
from threadloom.kernels.common.averaging import average_weights as average_weights
from threadloom.kernels.common.bands import (
    BandedConstants as BandedConstants,
    BandedWeights as BandedWeights,
    BandFactors as BandFactors,
    Bands as Bands,
    band_basis as band_basis,
    band_rows as band_rows,
    bands_of as bands_of,
    factor_sizes as factor_sizes,
    packed_words as packed_words,
    plain_constants as plain_constants,
    plain_weights as plain_weights,
)
from threadloom.kernels.common.cross_entropy import (
    IGNORED_TARGET as IGNORED_TARGET,
    cross_entropy_forward as cross_entropy_forward,
    exponentiate_row as exponentiate_row,
    has_terms as has_terms,
    objective_row as objective_row,
)
from threadloom.kernels.common.documents import (
    NO_BORDERS as NO_BORDERS,
    DocumentStarts as DocumentStarts,
    document_end as document_end,
    position_of as position_of,
)
from threadloom.kernels.common.dropout import (
    EMBEDDING_DROPOUT as EMBEDDING_DROPOUT,
    ElementNumbers as ElementNumbers,
    ResidualSite as ResidualSite,
    attention_dropout as attention_dropout,
    dropout_backward as dropout_backward,
    dropout_forward as dropout_forward,
    dropout_of as dropout_of,
    dropout_residual as dropout_residual,
    dropout_tile as dropout_tile,
    drops as drops,
    head_dropout as head_dropout,
    kept_factor as kept_factor,
    prepare_dropout as prepare_dropout,
    residual_dropout as residual_dropout,
)
from threadloom.kernels.common.embedding import (
    embedding_backward as embedding_backward,
    token_embedding_backward as token_embedding_backward,
)
from threadloom.kernels.common.gcd import gcd_loss as gcd_loss, gcd_table as gcd_table
from threadloom.kernels.common.gelu import gelu as gelu, gelu_and_derivative as gelu_and_derivative
from threadloom.kernels.common.head_norm import (
    HeadNormWeights as HeadNormWeights,
    head_norm_backward as head_norm_backward,
    head_norm_forward as head_norm_forward,
)
from threadloom.kernels.common.layernorm import EPSILON as EPSILON, Affine as Affine, row_statistics as row_statistics
from threadloom.kernels.common.llama_heads import (
    heads_of_member as heads_of_member,
    prepare_heads_backward as prepare_heads_backward,
    prepare_heads_forward as prepare_heads_forward,
    rotate_heads_backward as rotate_heads_backward,
    rotate_heads_forward as rotate_heads_forward,
)
from threadloom.kernels.common.multiply_add import plus_product as plus_product
from threadloom.kernels.common.protocol import (
    ARCHITECTURES as ARCHITECTURES,
    KERNELS as KERNELS,
    MODEL_KERNELS as MODEL_KERNELS,
    ModelKernels as ModelKernels,
    TeamKernels as TeamKernels,
)
from threadloom.kernels.common.reduction import CHUNK as CHUNK, sum_lanes as sum_lanes
from threadloom.kernels.common.residue_softmax import (
    residue_cross_entropy as residue_cross_entropy,
    residue_losses as residue_losses,
)
from threadloom.kernels.common.residues import (
    ResidueConstants as ResidueConstants,
    Residues as Residues,
    plain_residue_constants as plain_residue_constants,
    residue_embedding_backward as residue_embedding_backward,
    residue_softmax_rows as residue_softmax_rows,
    residues_of as residues_of,
    softmax_space as softmax_space,
)
from threadloom.kernels.common.rmsnorm import reciprocal_rms as reciprocal_rms
from threadloom.kernels.common.rotary import rotary_backward as rotary_backward, rotary_forward as rotary_forward
from threadloom.kernels.common.silu import silu as silu, silu_and_derivative as silu_and_derivative
from threadloom.kernels.common.softmax import softmax_backward_row as softmax_backward_row, softmax_rows as softmax_rows
from threadloom.kernels.common.sparse import sparse_product as sparse_product
from threadloom.kernels.common.swiglu import swiglu_backward as swiglu_backward, swiglu_forward as swiglu_forward
from threadloom.kernels.common.team import (
    Part as Part,
    Team as Team,
    make_team as make_team,
    meet as meet,
    part_of as part_of,
    part_of_units as part_of_units,
)
from threadloom.kernels.common.tensors import (
    ATTENTION_TILE as ATTENTION_TILE,
    NO_DROPOUT as NO_DROPOUT,
    NO_LORA as NO_LORA,
    NO_RATES as NO_RATES,
    NO_TERMS as NO_TERMS,
    AttentionActivations as AttentionActivations,
    Dropout as Dropout,
    DropoutRates as DropoutRates,
    Gpt2Constants as Gpt2Constants,
    HeadCounts as HeadCounts,
    LlamaConstants as LlamaConstants,
    LlamaWeights as LlamaWeights,
    LoraAdapter as LoraAdapter,
    LoraConstants as LoraConstants,
    LoraSite as LoraSite,
    LossTerms as LossTerms,
    Weights as Weights,
)
from threadloom.kernels.common.token_team import look_for as look_for, meet_soon as meet_soon
