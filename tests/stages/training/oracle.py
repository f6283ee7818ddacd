"""The float64 reference of a configuration's architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import reference
from tests.error_bounds import Storage, llama_bounds, model_bounds
from tests.reference import Ids, LlamaSizes, LoraSizes, Rotary, Tensors, llama, llama_tensors
from tests.reference.tensors import DECAYED
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.models import Geometry, LlamaGeometry


@dataclass(frozen=True)
class Oracle:
    """The reference of a model of known sizes."""

    random_tensors: Callable[[np.random.Generator, float], Tensors]
    """Generator and spread → weights of which none is zero or one."""
    forward: Callable[[Tensors, Ids], Any]
    """Weights and ids (B, T) → a record with the logits."""
    backward: Callable[[Tensors, Any, Ids, float], Tensors]
    """Weights, record, targets and scale → every gradient of the loss, with the configuration's terms."""
    bounds: Callable[[Tensors, Ids, Ids, float, Storage], dict[str, float]]
    """Weights, ids, targets, scale and storage → allowed relative distances of the gradients, "gradient" and "loss"."""
    decayed: tuple[str, ...]
    """Names of the tensors that weight decay applies to."""

    def loss_and_gradients(self, weights: Tensors, ids: Ids, targets: Ids, scale: float) -> tuple[float, Tensors]:
        """Return the summed loss, and the gradients of `scale` times it."""
        record = self.forward(weights, ids)
        losses = reference.cross_entropy_forward(record.logits, targets)
        return float(losses.sum()), self.backward(weights, record, targets, scale)


def oracle_of(config: ResolvedConfig) -> Oracle:
    """Return the reference of a configuration's model."""
    geometry = config.geometry()
    terms = config.loss.label_smoothing, config.loss.z_loss
    return _llama(geometry, terms) if isinstance(geometry, LlamaGeometry) else _gpt2(geometry, terms)


ADAPTERS = tuple(
    f"{name}_{key}" for name in ("qkv", "attn_proj", "fc", "mlp_proj", "gate_up", "down") for key in ("a", "b")
)


def _lora(g: Geometry) -> LoraSizes | None:
    """Return the adapters, from the modules' names; their columns are counted here from the sizes of the heads."""
    if g.lora is None:
        return None
    parts: dict[str, tuple[tuple[str, int], ...]] = {
        "qkv": (("c_attn", 3 * g.channels),), "attn_proj": (("attn.c_proj", g.channels),),
        "fc": (("c_fc", 4 * g.channels),), "mlp_proj": (("mlp.c_proj", g.channels),),
    }  # fmt: skip
    if isinstance(g, LlamaGeometry):
        keys, hidden = g.kv_heads * g.head_size, g.mlp_width
        parts = {
            "qkv": (("q_proj", g.heads * g.head_size), ("k_proj", keys), ("v_proj", keys)),
            "attn_proj": (("o_proj", g.channels),), "gate_up": (("gate_proj", hidden), ("up_proj", hidden)),
            "down": (("down_proj", g.channels),),
        }  # fmt: skip
    columns: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, modules in parts.items():
        first = 0
        for ending, width in modules:
            if any(module.endswith(ending) for module in g.lora.modules):
                columns[name] = (*columns.get(name, ()), (first, first + width))
            first += width
    factor = g.lora.rank**0.5 if g.lora.rank_stabilised else g.lora.rank
    return LoraSizes(g.lora.rank, g.lora.alpha / factor, columns)


def _gpt2(g: Geometry, terms: tuple[float, float]) -> Oracle:
    lora, shapes = _lora(g), reference.tensor_shapes(g.vocabulary, g.context, g.layers, g.channels)

    def random_tensors(rng: np.random.Generator, spread: float) -> Tensors:
        tensors = reference.random_tensors(rng, g.vocabulary, g.context, g.layers, g.channels, spread)
        return tensors | (lora.random_tensors(rng, shapes, spread) if lora else {})

    return Oracle(
        random_tensors,
        lambda weights, ids: reference.forward(weights, ids, g.heads, lora),
        lambda weights, record, targets, scale: reference.backward(weights, record, targets, scale, terms)[0],
        lambda weights, ids, targets, scale, storage: model_bounds(
            weights, ids, targets, g.heads, scale, storage, lora
        ),
        (*DECAYED, *ADAPTERS),
    )


def _llama(g: LlamaGeometry, terms: tuple[float, float]) -> Oracle:
    assert g.rotary.llama3 is None
    sizes = LlamaSizes(
        g.vocabulary, g.layers, g.channels, g.heads, g.kv_heads, g.head_size, g.mlp_width, g.epsilon,
        Rotary(g.rotary.theta, g.rotary.dimensions, g.rotary.linear_factor), g.layers_without_rotary, g.tied,
        g.qkv_bias, g.attn_proj_bias, g.mlp_bias, g.qk_norm, _lora(g),
    )  # fmt: skip
    return Oracle(
        lambda rng, spread: sizes.random_tensors(rng, spread=spread),
        lambda weights, ids: llama.forward(weights, ids, sizes),
        lambda weights, record, targets, scale: llama.backward(weights, record, targets, scale, terms)[0],
        lambda weights, ids, targets, scale, storage: llama_bounds(weights, ids, targets, sizes, scale, storage),
        (*llama_tensors.DECAYED, *ADAPTERS),
    )
