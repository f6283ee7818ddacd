"""The Llama family: shapes and initialisation.

Matrices are stored as (inputs, outputs), queries, keys and values side by side in one matrix, gate and up in another.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

from threadloom.stages.models.architecture import HuggingFaceLayout, InitialValue
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.growth import (
    TensorGrowth,
    last_norm,
    matrix,
    output_projection,
    repeated,
    shared_by_heads,
)
from threadloom.stages.models.llama_geometry import LlamaGeometry
from threadloom.stages.models.llama_huggingface import LlamaHuggingFace

MATRICES = ("wte", "head", "qkv_weight", "attn_proj_weight", "gate_up_weight", "down_weight")
"""The tensors with weight decay, which lead the table of shapes."""
RESIDUAL = ("attn_proj_weight", "down_weight")
"""The matrices that write to the residual stream."""
NORMS = ("norm1_weight", "norm2_weight", "normf_weight", "q_norm_weight", "k_norm_weight")


class Llama:
    """The architecture of Llama (Touvron et al., 2023), with the variants of `LlamaGeometry`."""

    name = "llama"
    geometry: type[Geometry] = LlamaGeometry
    matrices: tuple[str, ...] = MATRICES
    unstacked = frozenset({"wte", "head", "normf_weight"})
    huggingface: HuggingFaceLayout[Any] = LlamaHuggingFace()

    def parameter_shapes(self, geometry: LlamaGeometry) -> dict[str, Shape]:
        """Return the shape of every field of `kernels.common.LlamaWeights` that the model has, in its order."""
        g, n, c, f = geometry, geometry.layers, geometry.channels, geometry.hidden
        shapes: dict[str, Shape] = {
            "wte": (g.vocabulary, c),
            "head": (0 if g.tied else g.vocabulary, c),
            "qkv_weight": (n, c, g.qkv_width),
            "attn_proj_weight": (n, g.attn_width, c),
            "gate_up_weight": (n, c, 2 * f),
            "down_weight": (n, f, c),
            "norm1_weight": (n, c),
            "norm2_weight": (n, c),
            "normf_weight": (c,),
            "qkv_bias": (n, g.qkv_width if g.qkv_bias else 0),
            "attn_proj_bias": (n, c if g.attn_proj_bias else 0),
            "gate_up_bias": (n, 2 * f if g.mlp_bias else 0),
            "down_bias": (n, c if g.mlp_bias else 0),
            "q_norm_weight": (n, g.head_size if g.qk_norm else 0),
            "k_norm_weight": (n, g.head_size if g.qk_norm else 0),
        }
        return {name: shape for name, shape in shapes.items() if 0 not in shape}

    def gathered(self, geometry: LlamaGeometry) -> tuple[str, ...]:
        """Return the token embedding if the output projection is another matrix."""
        return () if geometry.tied else ("wte",)

    def tied(self, geometry: LlamaGeometry) -> dict[str, str]:
        """Return the output projection of a tied model, which is the token embedding."""
        return {"head": "wte"} if geometry.tied else {}

    def grown(self, geometry: LlamaGeometry, factor: int, sources: Sequence[int | None]) -> LlamaGeometry:
        """Return the sizes with `factor` times the channels, heads and MLP, and a layer for each of `sources`."""
        g = geometry
        plain = frozenset(new for new, old in enumerate(sources) if old in g.layers_without_rotary)
        return replace(
            g,
            channels=factor * g.channels,
            heads=factor * g.heads,
            kv_heads=factor * g.kv_heads,
            mlp_width=factor * g.mlp_width,
            layers=len(sources),
            layers_without_rotary=plain,
        )

    def growth(self, geometry: LlamaGeometry) -> dict[str, TensorGrowth]:
        """Return name → rule by which the tensor of a model of these sizes grows with the width.

        Heads are repeated as a whole, H of queries and then K of keys and values, so head j of the queries still reads
        the keys and values that its copy reads.
        """
        g, c, f = geometry, geometry.channels, geometry.hidden
        keys = g.kv_heads * g.head_size
        rules = {
            "wte": repeated(c),
            "head": output_projection(c),
            "qkv_weight": matrix(c, g.attn_width, keys, keys),
            "attn_proj_weight": matrix(g.attn_width, c, writes_residual=True),
            "gate_up_weight": matrix(c, f, f),
            "down_weight": matrix(f, c, writes_residual=True),
            "norm1_weight": repeated(c),
            "norm2_weight": repeated(c),
            "normf_weight": last_norm(c, tied=g.tied),
            "qkv_bias": repeated(g.attn_width, keys, keys),
            "attn_proj_bias": repeated(c, writes_residual=True),
            "gate_up_bias": repeated(f, f),
            "down_bias": repeated(c, writes_residual=True),
            "q_norm_weight": shared_by_heads(),
            "k_norm_weight": shared_by_heads(),
        }
        return {name: rules[name] for name in self.parameter_shapes(g)}

    def initial_values(self, geometry: LlamaGeometry, *, residual_scaling: bool) -> dict[str, InitialValue]:
        """Return normal distributions for the matrices, 1 for the weights of norms, 0 for biases.

        Matrices have a standard deviation of 0.02, with `residual_scaling` 0.02 / √(2 L) if they write to the residual
        stream, as in GPT-2 (Radford et al., 2019, section 2.3).
        """
        residual = 0.02 / sqrt(2 * geometry.layers) if residual_scaling else 0.02
        values = {name: InitialValue() for name in self.parameter_shapes(geometry)}
        special = {name: InitialValue(deviation=0.02) for name in MATRICES}
        special |= {name: InitialValue(deviation=residual) for name in RESIDUAL}
        special |= {name: InitialValue(constant=1.0) for name in NORMS}
        return {name: special.get(name, value) for name, value in values.items()}
