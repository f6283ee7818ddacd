"""The Llama family in Hugging Face's layout: names of the tensors.

Hugging Face stores matrices as (outputs, inputs), and queries, keys, values, gate and up projection separately. Here
they are (inputs, outputs), with the columns of those side by side, so each stored matrix is a range of columns,
transposed. Rotary positions pair dimensions by halves in both, so no rows are permuted.
"""

import re
from collections.abc import Mapping
from typing import Any

from threadloom.stages.models.llama_config import geometry_of
from threadloom.stages.models.llama_config_writer import config_of
from threadloom.stages.models.llama_families import FAMILIES
from threadloom.stages.models.llama_geometry import LlamaGeometry
from threadloom.stages.models.tensor_part import TensorPart


class LlamaHuggingFace:
    """The layout of `transformers.LlamaForCausalLM` and of the other classes of `FAMILIES`."""

    model_types = tuple(FAMILIES)
    token_embedding = "model.embed_tokens.weight"
    output_projection = "lm_head.weight"
    default_targets: tuple[str, ...] = ("q_proj", "v_proj")
    ignored = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # computed from config.json

    def parts(self, geometry: LlamaGeometry) -> dict[str, TensorPart]:
        """Return the name of each tensor in a file → the part of a tensor of `parameter_shapes` that it is."""
        parts = {self.token_embedding: TensorPart("wte")}
        for layer in range(geometry.layers):
            parts |= _layer_parts(geometry, layer)
        parts["model.norm.weight"] = TensorPart("normf_weight")
        if not geometry.tied:
            parts[self.output_projection] = TensorPart("head")
        return parts

    def config(
        self, geometry: LlamaGeometry, end_of_text: int | None, came_in: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the content of config.json; see `HuggingFaceLayout`."""
        return config_of(geometry, end_of_text, came_in)

    def geometry(self, config: bytes) -> LlamaGeometry:
        """Return the geometry of a config.json; see `HuggingFaceLayout`."""
        return geometry_of(config)


def _layer_parts(geometry: LlamaGeometry, layer: int) -> dict[str, TensorPart]:
    """Return the name of each tensor of a layer → its part, in the order of the computation."""
    size = geometry.head_size
    keys, values, end = geometry.attn_width, geometry.attn_width + geometry.kv_heads * size, geometry.qkv_width
    qkv = {"q_proj": (0, keys), "k_proj": (keys, values), "v_proj": (values, end)}
    gate_up = {"gate_proj": (0, geometry.mlp_width), "up_proj": (geometry.mlp_width, 2 * geometry.mlp_width)}

    prefix, parts = f"model.layers.{layer}.", dict[str, TensorPart]()

    def add_linear(name: str, tensor: str, columns: tuple[int, int] | None, *, bias: bool) -> None:
        parts[f"{prefix}{name}.weight"] = TensorPart(f"{tensor}_weight", layer, columns, transposed=True)
        if bias:
            parts[f"{prefix}{name}.bias"] = TensorPart(f"{tensor}_bias", layer, columns)

    parts[f"{prefix}input_layernorm.weight"] = TensorPart("norm1_weight", layer)
    for name, columns in qkv.items():
        add_linear(f"self_attn.{name}", "qkv", columns, bias=geometry.qkv_bias)
    if geometry.qk_norm:
        parts[f"{prefix}self_attn.q_norm.weight"] = TensorPart("q_norm_weight", layer)
        parts[f"{prefix}self_attn.k_norm.weight"] = TensorPart("k_norm_weight", layer)
    add_linear("self_attn.o_proj", "attn_proj", None, bias=geometry.attn_proj_bias)
    parts[f"{prefix}post_attention_layernorm.weight"] = TensorPart("norm2_weight", layer)
    for name, columns in gate_up.items():
        add_linear(f"mlp.{name}", "gate_up", columns, bias=geometry.mlp_bias)
    add_linear("mlp.down_proj", "down", None, bias=geometry.mlp_bias)
    return parts
