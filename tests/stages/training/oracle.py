"""The float64 reference of a configuration's architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import reference
from tests.error_bounds import Storage, llama_bounds, model_bounds
from tests.reference import Ids, LlamaSizes, Rotary, Tensors, llama, llama_tensors
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
    """Weights, record, targets and scale → every gradient."""
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
    geometry = config.model.geometry()
    return _llama(geometry) if isinstance(geometry, LlamaGeometry) else _gpt2(geometry)


def _gpt2(g: Geometry) -> Oracle:
    return Oracle(
        lambda rng, spread: reference.random_tensors(rng, g.vocabulary, g.context, g.layers, g.channels, spread),
        lambda weights, ids: reference.forward(weights, ids, g.heads),
        lambda weights, record, targets, scale: reference.backward(weights, record, targets, scale)[0],
        lambda weights, ids, targets, scale, storage: model_bounds(weights, ids, targets, g.heads, scale, storage),
        DECAYED,
    )


def _llama(g: LlamaGeometry) -> Oracle:
    assert g.rotary.llama3 is None
    sizes = LlamaSizes(
        g.vocabulary, g.layers, g.channels, g.heads, g.kv_heads, g.head_size, g.mlp_width, g.epsilon,
        Rotary(g.rotary.theta, g.rotary.dimensions, g.rotary.linear_factor), g.layers_without_rotary, g.tied,
        g.qkv_bias, g.attn_proj_bias, g.mlp_bias, g.qk_norm,
    )  # fmt: skip
    return Oracle(
        lambda rng, spread: sizes.random_tensors(rng, spread=spread),
        lambda weights, ids: llama.forward(weights, ids, sizes),
        lambda weights, record, targets, scale: llama.backward(weights, record, targets, scale)[0],
        lambda weights, ids, targets, scale, storage: llama_bounds(weights, ids, targets, sizes, scale, storage),
        llama_tensors.DECAYED,
    )
