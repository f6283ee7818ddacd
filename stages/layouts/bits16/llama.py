"""The Llama family in bfloat16 and float16."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from threadloom.kernels import Floats, TokenIds
from threadloom.kernels.bits16 import (
    LLAMA,
    LLAMA_TEAM,
    LlamaActivations16,
    LlamaPackedWeights,
    LlamaScratch16,
    LlamaWeights16,
    token_embedding_forward,
)
from threadloom.kernels.common import DocumentStarts
from threadloom.stages.layouts.bits16.layout import FLOAT, ArraySpecs
from threadloom.stages.layouts.bits16.lora import lora_activation_specs, lora_packed_fields, lora_scratch_specs
from threadloom.stages.models import LlamaGeometry

LINEAR = ("qkv", "attn_proj", "gate_up", "down")
"""The linear layers, which can have adapters."""


class LlamaBits16Layout:
    """The arrays and kernels of the Llama family in 16 bits. Implements `Bits16Layout`."""

    weights = LlamaWeights16
    packed = LlamaPackedWeights
    shared_packed: Mapping[str, str] = {"wte": "head"}  # of a tied model
    repacked = frozenset(LINEAR)
    activations = LlamaActivations16
    scratch = LlamaScratch16
    kernels = LLAMA
    team = LLAMA_TEAM

    def packed_fields(self, geometry: LlamaGeometry) -> dict[str, str]:
        """Return every matrix; the token embedding of a tied model is the output projection."""
        embeddings = {"wte": "head"} if geometry.tied else {"wte": "wte", "head": "head"}
        return embeddings | {f"{name}_weight": name for name in LINEAR} | lora_packed_fields(LINEAR)

    def flat_packed(self, geometry: LlamaGeometry) -> dict[str, int]:
        """Return nothing."""
        return {}

    def pack_flat(self, geometry: LlamaGeometry, master: Any, packed: Any) -> None:
        """Do nothing."""

    def activation_specs(
        self, geometry: LlamaGeometry, sequences: int, storage: np.dtype[Any], *, small: bool = False
    ) -> ArraySpecs:
        """Return shape and dtype of every field of `LlamaActivations16` but ``dropout_key`` and ``thread``."""
        g, n, c, t, b = geometry, geometry.layers, geometry.channels, geometry.context, sequences
        r = b * t
        return {
            "x": ((r, c), FLOAT),
            "normed1": ((n, r, c), storage),
            "rstd1": ((n, r), FLOAT),
            "qkv": ((n, r, g.qkv_width), storage),
            "qk_raw": ((n, r, g.normed_width), storage),
            "attn": ((n, r, g.attn_width), storage),
            "attn_lse": ((n, b, g.heads, t), FLOAT),
            "normed2": ((n, r, c), storage),
            "rstd2": ((n, r), FLOAT),
            "gate_up": ((1 if small else n, r, 2 * g.hidden), storage),
            "h": ((r, c), storage),
            "gated": ((r, g.hidden), storage),
        } | lora_activation_specs(geometry, LINEAR, r, storage)

    def scratch_specs(self, geometry: LlamaGeometry, sequences: int, storage: np.dtype[Any]) -> ArraySpecs:
        """Return shape and dtype of every field of `LlamaScratch16` but ``thread`` and those of the logits."""
        g, c, r = geometry, geometry.channels, sequences * geometry.context
        return {
            "dx": ((r, c), FLOAT),
            "dx16": ((r, c), storage),
            "dh": ((r, c), FLOAT),
            "d_attn": ((r, g.attn_width), storage),
            "d_qkv": ((r, g.qkv_width), storage),
            "d_gated": ((r, g.hidden), storage),
            "d_gate_up": ((r, 2 * g.hidden), storage),
            "gated": ((r, g.hidden), storage),
            "transposed": ((max(c, g.hidden, g.attn_width), r), storage),
            "h": ((r, c), storage),
            "normed": ((r, c), storage),
            "rstd": ((r,), FLOAT),
        } | lora_scratch_specs(geometry, LINEAR, r, storage)

    def embed(self, weights: LlamaWeights16, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the token embeddings, from the packed weights."""
        token_embedding_forward(weights.packed.wte, ids, out)
