"""GPT-2 in bfloat16 and float16."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from threadloom.kernels import Floats, TokenIds
from threadloom.kernels.bits16 import (
    GPT2,
    GPT2_TEAM,
    Activations16,
    PackedWeights,
    Scratch16,
    Weights16,
    embedding_forward,
)
from threadloom.kernels.common import DocumentStarts, ModelKernels
from threadloom.stages.layouts.bits16.layout import FLOAT, ArraySpecs
from threadloom.stages.layouts.bits16.lora import lora_activation_specs, lora_packed_fields, lora_scratch_specs
from threadloom.stages.models import Geometry

LINEAR = ("qkv", "attn_proj", "fc", "mlp_proj")
"""The linear layers, which can have adapters."""


class Gpt2Bits16Layout:
    """The arrays and kernels of GPT-2 in 16 bits. Implements `Bits16Layout`."""

    weights: type[Any] = Weights16
    packed: type[Any] = PackedWeights
    shared_packed: Mapping[str, str] = {}
    repacked = frozenset(LINEAR)
    activations = Activations16
    scratch = Scratch16
    kernels: ModelKernels[Any, Any, Any, Any, Any] = GPT2
    team = GPT2_TEAM

    def packed_fields(self, geometry: Geometry) -> dict[str, str]:
        """Return every matrix but the position embedding."""
        return {"wte": "wte", **{f"{name}_weight": name for name in LINEAR}, **lora_packed_fields(LINEAR)}

    def flat_packed(self, geometry: Geometry) -> dict[str, int]:
        """Return nothing."""
        return {}

    def pack_flat(self, geometry: Geometry, master: Any, packed: Any) -> None:
        """Do nothing."""

    def activation_specs(
        self, geometry: Geometry, sequences: int, storage: np.dtype[Any], *, small: bool = False
    ) -> ArraySpecs:
        """Return shape and dtype of every field of `Activations16` but ``dropout_key`` and ``thread``."""
        n, c, f, t, b = geometry.layers, geometry.channels, geometry.hidden, geometry.context, sequences
        r = b * t
        return {
            "x": ((r, c), FLOAT),
            "normed1": ((n, r, c), storage),
            "rstd1": ((n, r), FLOAT),
            "qkv": ((n, r, 3 * c), storage),
            "attn": ((n, r, c), storage),
            "attn_lse": ((n, b, geometry.heads, t), FLOAT),
            "normed2": ((n, r, c), storage),
            "rstd2": ((n, r), FLOAT),
            "fc": ((1 if small else n, r, f), storage),
            "h": ((r, c), storage),
            "gelu": ((r, f), storage),
        } | lora_activation_specs(geometry, LINEAR, r, storage)

    def scratch_specs(self, geometry: Geometry, sequences: int, storage: np.dtype[Any]) -> ArraySpecs:
        """Return shape and dtype of every field of `Scratch16` but ``thread`` and those of the logits."""
        c, f = geometry.channels, geometry.hidden
        r = sequences * geometry.context
        return {
            "dx": ((r, c), FLOAT),
            "dx16": ((r, c), storage),
            "dh": ((r, c), FLOAT),
            "d_attn": ((r, c), storage),
            "d_qkv": ((r, 3 * c), storage),
            "d_fc": ((r, f), storage),
            "gelu": ((r, f), storage),
            "transposed": ((f, r), storage),
            "h": ((r, c), storage),
            "normed": ((r, c), storage),
            "rstd": ((r,), FLOAT),
            "unused": ((3, c), FLOAT),
        } | lora_scratch_specs(geometry, LINEAR, r, storage)

    def embed(self, weights: Weights16, ids: TokenIds, context: int, starts: DocumentStarts, out: Floats) -> None:
        """Write the sum of token embeddings, from the packed weights, and position embeddings."""
        embedding_forward(weights.packed.wte, weights.master.wpe, ids, context, starts, out)
