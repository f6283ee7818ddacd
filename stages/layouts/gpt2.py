"""GPT-2 in float32."""

from typing import Any

from threadloom import kernels
from threadloom.kernels import ATTENTION_TILE, Activations, DecodeScratch, Floats, Scratch, TokenIds, Weights
from threadloom.kernels.common import DocumentStarts, Gpt2Constants, ModelKernels
from threadloom.kernels.float32 import GPT2, GPT2_DECODE, GPT2_TEAM
from threadloom.stages.layouts.lora import lora_activation_shapes, lora_constants, lora_scratch_shapes
from threadloom.stages.models import Geometry, Shape

LORA_MATRICES = ("qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")
"""The matrices that can have adapters, in the order of the kernels' constants."""


class Gpt2Layout:
    """The arrays and kernels of GPT-2. Implements `Layout`."""

    weights: type[Any] = Weights
    activations = Activations
    scratch = Scratch
    of_head = frozenset({"lnf_weight", "lnf_bias"})
    softmax_rows = 0
    kernels: ModelKernels[Any, Any, Any, Any, Any] = GPT2
    team = GPT2_TEAM
    decode = GPT2_DECODE
    decode_matrices: tuple[str, ...] = ("wte", *LORA_MATRICES)
    decode_scratch = DecodeScratch
    decode_shared = frozenset({"x", "qkv", "attn", "fc"})

    def constants(self, geometry: Geometry) -> Any:
        """Return the number of heads and the numbers of adapters."""
        return Gpt2Constants(geometry.heads, lora_constants(geometry, LORA_MATRICES))

    def activation_shapes(self, geometry: Geometry, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `kernels.Activations`."""
        n, c, f, t, b = geometry.layers, geometry.channels, geometry.hidden, geometry.context, sequences
        r = b * t
        return {
            "x": (n + 1, r, c),
            "ln1_mean": (n, r),
            "ln1_rstd": (n, r),
            "qkv": (n, r, 3 * c),
            "attn": (n, r, c),
            "attn_lse": (n, b, geometry.heads, t),
            "x_mid": (n, r, c),
            "ln2_mean": (n, r),
            "ln2_rstd": (n, r),
            "fc": (n, r, f),
            "h": (r, c),
            "gelu": (r, f),
            "scores": (ATTENTION_TILE, t),
        } | lora_activation_shapes(geometry, LORA_MATRICES, r)

    def scratch_shapes(self, geometry: Geometry, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `kernels.Scratch` but ``logits``."""
        c, f, t = geometry.channels, geometry.hidden, geometry.context
        r = sequences * t
        return {
            "dx": (r, c),
            "dh": (r, c),
            "d_attn": (r, c),
            "d_qkv": (r, 3 * c),
            "d_fc": (r, f),
            "gelu": (r, f),
            "h": (r, c),
            "scores": (2, ATTENTION_TILE, t),
            "lnf_mean": (r,),
            "lnf_rstd": (r,),
        } | lora_scratch_shapes(geometry, LORA_MATRICES, r)

    def decode_scratch_shapes(self, geometry: Geometry) -> dict[str, Shape]:
        """Return the shape of every field of `kernels.DecodeScratch`."""
        c, f = geometry.channels, geometry.hidden
        return {
            "x": (c,), "qkv": (3 * c,), "attn": (c,), "fc": (f,), "h": (c,), "gelu": (f,),
            "scores": (geometry.context,),
        }  # fmt: skip

    def layer_constants(self, constants: Gpt2Constants, layer: int) -> Gpt2Constants:
        """Return the constants, which are the same in every layer."""
        return constants

    def embed(self, weights: Weights, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the sum of token and position embeddings."""
        kernels.embedding_forward(weights.wte, weights.wpe, ids, context, starts, out)

    def scatter_input_gradient(
        self, ids: TokenIds, dx: Floats, context: int, starts: DocumentStarts, gradients: Weights, *, accumulate: bool
    ) -> None:
        """Add the gradient to that of the tied token embedding, and write or add it to that of the positions."""
        kernels.embedding_backward(ids, dx, context, starts, gradients.wte, gradients.wpe, accumulate)
