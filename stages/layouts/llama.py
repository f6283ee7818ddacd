"""The Llama family in float32."""

import numpy as np

from threadloom.kernels import ATTENTION_TILE, Floats, TokenIds
from threadloom.kernels.common import DocumentStarts, LlamaConstants, LlamaWeights, token_embedding_backward
from threadloom.kernels.float32 import (
    LLAMA,
    LLAMA_DECODE,
    LLAMA_TEAM,
    LlamaActivations,
    LlamaDecodeScratch,
    LlamaScratch,
    token_embedding_forward,
)
from threadloom.stages.layouts.layout import head_counts
from threadloom.stages.layouts.lora import lora_activation_shapes, lora_constants, lora_scratch_shapes
from threadloom.stages.models import LlamaGeometry, Shape, rotary_table

LORA_MATRICES = ("qkv_weight", "attn_proj_weight", "gate_up_weight", "down_weight")
"""The matrices that can have adapters, in the order of the kernels' constants."""


class LlamaLayout:
    """The arrays and kernels of the Llama family. Implements `Layout`."""

    weights = LlamaWeights
    activations = LlamaActivations
    scratch = LlamaScratch
    of_head = frozenset({"head", "normf_weight"})
    softmax_rows = 0
    kernels = LLAMA
    team = LLAMA_TEAM
    decode = LLAMA_DECODE
    decode_matrices: tuple[str, ...] = ("wte", "head", *LORA_MATRICES)
    decode_scratch = LlamaDecodeScratch
    decode_shared = frozenset({"x", "qkv", "attn", "gate_up"})

    def constants(self, geometry: LlamaGeometry) -> LlamaConstants:
        """Return heads, epsilon, the angles of rotary positions, the layers that have them, and those of adapters."""
        g = geometry
        table = rotary_table(g.rotary, g.head_size, g.context)
        rotated = np.array([layer not in g.layers_without_rotary for layer in range(g.layers)])
        return LlamaConstants(
            head_counts(g), g.epsilon, table.cos, table.sin, rotated, lora_constants(g, LORA_MATRICES)
        )

    def activation_shapes(self, geometry: LlamaGeometry, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `LlamaActivations`."""
        g, n, c, t, b = geometry, geometry.layers, geometry.channels, geometry.context, sequences
        r = b * t
        return {
            "x": (n + 1, r, c),
            "rstd1": (n, r),
            "qkv": (n, r, g.qkv_width),
            "qk_raw": (n, r, g.normed_width),
            "attn": (n, r, g.attn_width),
            "attn_lse": (n, b, g.heads, t),
            "x_mid": (n, r, c),
            "rstd2": (n, r),
            "gate_up": (n, r, 2 * g.hidden),
            "h": (r, c),
            "gated": (r, g.hidden),
            "scores": (ATTENTION_TILE, t),
        } | lora_activation_shapes(geometry, LORA_MATRICES, r)

    def scratch_shapes(self, geometry: LlamaGeometry, sequences: int) -> dict[str, Shape]:
        """Return the shape of every field of `LlamaScratch` but ``logits``."""
        g, c, t = geometry, geometry.channels, geometry.context
        r = sequences * t
        return {
            "dx": (r, c),
            "dh": (r, c),
            "d_attn": (r, g.attn_width),
            "d_qkv": (r, g.qkv_width),
            "d_gated": (r, g.hidden),
            "d_gate_up": (r, 2 * g.hidden),
            "gated": (r, g.hidden),
            "h": (r, c),
            "scores": (2, ATTENTION_TILE, t),
            "normf_rstd": (r,),
        } | lora_scratch_shapes(geometry, LORA_MATRICES, r)

    def decode_scratch_shapes(self, geometry: LlamaGeometry) -> dict[str, Shape]:
        """Return the shape of every field of `LlamaDecodeScratch`."""
        g = geometry
        return {
            "x": (g.channels,),
            "qkv": (g.qkv_width,),
            "attn": (g.attn_width,),
            "gate_up": (1, 2 * g.hidden),
            "h": (g.channels,),
            "heads": (1, g.qkv_width),
            "qk_raw": (1, g.normed_width),
            "gated": (1, g.hidden),
            "scores": (g.context,),
        }

    def layer_constants(self, constants: LlamaConstants, layer: int) -> LlamaConstants:
        """Return the constants with the choice of rotary positions of one layer."""
        return constants._replace(rotary=constants.rotary[layer : layer + 1])

    def embed(self, weights: LlamaWeights, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the token embeddings."""
        token_embedding_forward(weights.wte, ids, out)

    def scatter_input_gradient(
        self,
        ids: TokenIds,
        dx: Floats,
        context: int,
        starts: DocumentStarts,
        gradients: LlamaWeights,
        *,
        accumulate: bool,
    ) -> None:
        """Add the gradient to that of the token embedding, which the tied output projection has written before."""
        tied = gradients.head is gradients.wte
        token_embedding_backward(ids, dx, gradients.wte, accumulate or tied)
