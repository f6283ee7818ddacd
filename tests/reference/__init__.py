"""GPT-2 and the Llama family in plain float64 NumPy: the oracle of the kernels and of training.

It imports nothing of the project and shares no arithmetic with the kernels: every function is written from its formula,
for whole arrays. The functions of GPT-2 as a whole are names of this package; those of the Llama family are names of
its module `llama`.

Shapes: B sequences of T tokens, C channels, H heads of size D, K heads of keys and values, F hidden (GPT-2: 4C), L
layers, V vocabulary. Matrices are stored (inputs, outputs): a linear layer is ``y = x @ weight + bias``.

Every result that an implementation in less precision rounds is marked: `computed` is a result of arithmetic, with its
error in units of one rounding, and `stored` one that is kept in the format of the activations. The marks have no effect
here; `tests.error_bounds` perturbs the marked results to find out how far a correct implementation may be off.
"""

from tests.reference.attention import (
    attention_backward as attention_backward,
    attention_forward as attention_forward,
    attention_heads as attention_heads,
)
from tests.reference.gpt2 import (
    Record as Record,
    backward as backward,
    forward as forward,
    loss_and_gradients as loss_and_gradients,
    loss_mean as loss_mean,
    loss_sum as loss_sum,
    losses as losses,
    next_token_logits as next_token_logits,
)
from tests.reference.layers import (
    cross_entropy_backward as cross_entropy_backward,
    cross_entropy_forward as cross_entropy_forward,
    embedding_backward as embedding_backward,
    embedding_forward as embedding_forward,
    gelu_backward as gelu_backward,
    gelu_forward as gelu_forward,
    layernorm_backward as layernorm_backward,
    layernorm_forward as layernorm_forward,
    layernorm_statistics as layernorm_statistics,
    linear_backward as linear_backward,
    linear_forward as linear_forward,
    loss_terms as loss_terms,
    normalised as normalised,
    projection_backward as projection_backward,
    token_embedding_backward as token_embedding_backward,
)
from tests.reference.llama_layers import (
    head_norm_backward as head_norm_backward,
    head_norm_forward as head_norm_forward,
    rms_normalised as rms_normalised,
    rms_statistic as rms_statistic,
    rmsnorm_backward as rmsnorm_backward,
    rmsnorm_forward as rmsnorm_forward,
    swiglu_backward as swiglu_backward,
    swiglu_forward as swiglu_forward,
)
from tests.reference.llama_tensors import LlamaSizes as LlamaSizes
from tests.reference.lora import LoraSizes as LoraSizes
from tests.reference.optimizer import (
    AdamW as AdamW,
    Delayed as Delayed,
    adamw as adamw,
    clip_by_global_norm as clip_by_global_norm,
    delayed_adamw as delayed_adamw,
    global_norm as global_norm,
)
from tests.reference.rotary import (
    Llama3Scaling as Llama3Scaling,
    Rotary as Rotary,
    rotary_backward as rotary_backward,
    rotary_forward as rotary_forward,
    rotary_frequencies as rotary_frequencies,
    rotary_tables as rotary_tables,
)
from tests.reference.tensors import (
    Array as Array,
    Ids as Ids,
    Tensors as Tensors,
    random_tensors as random_tensors,
    tensor_shapes as tensor_shapes,
)
