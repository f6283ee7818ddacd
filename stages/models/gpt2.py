"""GPT-2: shapes, initialisation and the names of Hugging Face's layout.

Matrices are stored as (inputs, outputs) by threadloom and by Hugging Face, so nothing is transposed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import msgspec

from threadloom.stages.models.architecture import HuggingFaceLayout, InitialValue, UnsupportedModelError
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.growth import TensorGrowth, last_norm, matrix, repeated
from threadloom.stages.models.huggingface_config import merged_config, require_sizes, require_values
from threadloom.stages.models.tensor_part import TensorPart

MATRICES = ("wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")
"""The tensors with weight decay, which lead the table of shapes."""

_HUGGINGFACE_NAMES = {
    "wte": "transformer.wte.weight",
    "wpe": "transformer.wpe.weight",
    "qkv_weight": "transformer.h.{layer}.attn.c_attn.weight",
    "attn_proj_weight": "transformer.h.{layer}.attn.c_proj.weight",
    "fc_weight": "transformer.h.{layer}.mlp.c_fc.weight",
    "mlp_proj_weight": "transformer.h.{layer}.mlp.c_proj.weight",
    "ln1_weight": "transformer.h.{layer}.ln_1.weight",
    "ln1_bias": "transformer.h.{layer}.ln_1.bias",
    "qkv_bias": "transformer.h.{layer}.attn.c_attn.bias",
    "attn_proj_bias": "transformer.h.{layer}.attn.c_proj.bias",
    "ln2_weight": "transformer.h.{layer}.ln_2.weight",
    "ln2_bias": "transformer.h.{layer}.ln_2.bias",
    "fc_bias": "transformer.h.{layer}.mlp.c_fc.bias",
    "mlp_proj_bias": "transformer.h.{layer}.mlp.c_proj.bias",
    "lnf_weight": "transformer.ln_f.weight",
    "lnf_bias": "transformer.ln_f.bias",
}


class _HuggingFaceConfig(msgspec.Struct):
    """The fields of a GPT2Config that change the computation; those without a default are required."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


class Gpt2HuggingFace:
    """The layout of `transformers.GPT2LMHeadModel`."""

    model_types: tuple[str, ...] = ("gpt2",)
    token_embedding = "transformer.wte.weight"
    output_projection = "lm_head.weight"
    default_targets: tuple[str, ...] = ("c_attn",)
    ignored = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks

    def parts(self, geometry: Geometry) -> dict[str, TensorPart]:
        """Return the name of each tensor in a file → the part of a tensor of `parameter_shapes` that it is."""
        parts: dict[str, TensorPart] = {}
        for name, theirs in _HUGGINGFACE_NAMES.items():
            if "{layer}" in theirs:
                parts |= {theirs.format(layer=layer): TensorPart(name, layer) for layer in range(geometry.layers)}
            else:
                parts[theirs] = TensorPart(name)
        return parts

    def config(
        self, geometry: Geometry, end_of_text: int | None, came_in: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the content of config.json; see `HuggingFaceLayout`."""
        decided = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": geometry.vocabulary,
            "n_positions": geometry.context,
            "n_embd": geometry.channels,
            "n_layer": geometry.layers,
            "n_head": geometry.heads,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }
        if "n_ctx" in (came_in or {}):  # n_positions in files of 2019, which some programs read
            decided["n_ctx"] = geometry.context
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text)
        return merged_config(came_in, decided, dropout | tokens)

    def geometry(self, config: bytes) -> Geometry:
        """Return the geometry of a config.json; see `HuggingFaceLayout`."""
        found = msgspec.json.decode(config, type=_HuggingFaceConfig)
        _check(found)
        return Geometry(found.vocab_size, found.n_positions, found.n_layer, found.n_head, found.n_embd)


class Gpt2:
    """The architecture of GPT-2 (Radford et al. 2019)."""

    name = "gpt2"
    geometry: type[Geometry] = Geometry
    matrices: tuple[str, ...] = MATRICES
    unstacked = frozenset({"wte", "wpe", "lnf_weight", "lnf_bias"})
    huggingface: HuggingFaceLayout[Any] = Gpt2HuggingFace()

    def parameter_shapes(self, geometry: Geometry) -> dict[str, Shape]:
        """Return the shape of every field of `kernels.Weights`, in its order."""
        v, t, n, c, f = geometry.vocabulary, geometry.context, geometry.layers, geometry.channels, geometry.hidden
        return {
            "wte": (v, c),
            "wpe": (t, c),
            "qkv_weight": (n, c, 3 * c),
            "attn_proj_weight": (n, c, c),
            "fc_weight": (n, c, f),
            "mlp_proj_weight": (n, f, c),
            "ln1_weight": (n, c),
            "ln1_bias": (n, c),
            "qkv_bias": (n, 3 * c),
            "attn_proj_bias": (n, c),
            "ln2_weight": (n, c),
            "ln2_bias": (n, c),
            "fc_bias": (n, f),
            "mlp_proj_bias": (n, c),
            "lnf_weight": (c,),
            "lnf_bias": (c,),
        }

    def gathered(self, geometry: Geometry) -> tuple[str, ...]:
        """Return the position embedding; the token embedding is also the output projection."""
        return ("wpe",)

    def tied(self, geometry: Geometry) -> dict[str, str]:
        """Return the factors in the place of the token embedding, if kernels read those; the tuple has one field for
        the token embedding and the output projection."""
        return {"wte": "wte_factors"} if geometry.residues else {}

    def grown(self, geometry: Geometry, factor: int, sources: Sequence[int | None]) -> Geometry:
        """Return the sizes with `factor` times the channels and heads, and a layer for each of `sources`."""
        channels, heads = factor * geometry.channels, factor * geometry.heads
        return replace(geometry, channels=channels, heads=heads, layers=len(sources))

    def growth(self, geometry: Geometry) -> dict[str, TensorGrowth]:
        """Return name → rule by which the tensor of a model of these sizes grows with the width."""
        c, f = geometry.channels, geometry.hidden
        return {
            "wte": repeated(c),
            "wpe": repeated(c),
            "qkv_weight": matrix(c, c, c, c),
            "attn_proj_weight": matrix(c, c, writes_residual=True),
            "fc_weight": matrix(c, f),
            "mlp_proj_weight": matrix(f, c, writes_residual=True),
            "ln1_weight": repeated(c),
            "ln1_bias": repeated(c),
            "qkv_bias": repeated(c, c, c),
            "attn_proj_bias": repeated(c, writes_residual=True),
            "ln2_weight": repeated(c),
            "ln2_bias": repeated(c),
            "fc_bias": repeated(f),
            "mlp_proj_bias": repeated(c, writes_residual=True),
            "lnf_weight": last_norm(c, tied=True),
            "lnf_bias": last_norm(c, tied=True),
        }

    def initial_values(self, geometry: Geometry, *, residual_scaling: bool) -> dict[str, InitialValue]:
        """Return the distributions of section 2.3 of the paper.

        Matrices have a standard deviation of 0.02, with `residual_scaling` 0.02 / √(2 L) if they write to the residual
        stream; LayerNorm weights are 1, biases 0.
        """
        residual = 0.02 / sqrt(2 * geometry.layers) if residual_scaling else 0.02
        values = {name: InitialValue() for name in self.parameter_shapes(geometry)}
        values |= {name: InitialValue(deviation=0.02) for name in MATRICES}
        values |= {name: InitialValue(deviation=residual) for name in ("attn_proj_weight", "mlp_proj_weight")}
        return values | {name: InitialValue(constant=1.0) for name in ("ln1_weight", "ln2_weight", "lnf_weight")}


def _check(config: _HuggingFaceConfig) -> None:
    """Raise UnsupportedModelError for a variant that the kernels do not compute."""
    accepted: dict[str, tuple[Any, ...]] = {
        "n_inner": (None, 4 * config.n_embd),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    require_values(config, accepted, "GPT-2")
    require_sizes(config, ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"))
    if config.n_embd % config.n_head:
        got = f"n_embd = {config.n_embd}, n_head = {config.n_head}"
        raise UnsupportedModelError("n_embd that n_head divides", got, "the file was edited")
