"""The loss of each architecture in float64, in plain NumPy that uses no kernel: the oracle of `threadloom bench`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models import (
    Geometry,
    LlamaGeometry,
    adapted_modules,
    field_names,
    lora_scale,
    rotary_table,
)

Doubles = NDArray[np.float64]
Weights = Mapping[str, Doubles]


def reference_loss(weights: Weights, geometry: Geometry, ids: Any, targets: Any) -> float:
    """Return the mean cross-entropy of a model; `ids` and `targets` are whole sequences, one after another (R,)."""
    weights = _merged(weights, geometry)
    hidden, projection = _MODELS[geometry.architecture](weights, geometry, ids)
    logits = (hidden @ projection.T).reshape(ids.size, -1)
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[np.arange(ids.size), targets]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - picked))


def _merged(weights: Weights, geometry: Geometry) -> Weights:
    """Return the weights with the products of the adapters added to their matrices."""
    if geometry.lora is None:
        return weights
    merged, scale = dict(weights), lora_scale(geometry.lora)
    for module in adapted_modules(geometry):
        rows, columns = slice(module.first_row, module.first_row + geometry.lora.rank), slice(*module.columns)
        a, b = (weights[name][:, rows] for name in field_names(module.tensor))
        merged[module.tensor] = merged[module.tensor].copy()
        merged[module.tensor][..., columns] += scale * a.swapaxes(1, 2) @ b[..., columns]
    return merged


def _gpt2(w: Weights, geometry: Geometry, ids: Any) -> tuple[Doubles, Doubles]:
    """Return the output of the last norm (B, T, C), and the output projection (V, C)."""
    t, heads = geometry.context, geometry.heads
    x = w["wte"][ids].reshape(-1, t, geometry.channels) + w["wpe"][:t]
    for n in range(geometry.layers):
        qkv = _layer_norm(x, w["ln1_weight"][n], w["ln1_bias"][n]) @ w["qkv_weight"][n] + w["qkv_bias"][n]
        q, k, v = (_heads(part, heads) for part in np.split(qkv, 3, axis=-1))
        x = x + _attention(q, k, v) @ w["attn_proj_weight"][n] + w["attn_proj_bias"][n]
        u = _layer_norm(x, w["ln2_weight"][n], w["ln2_bias"][n]) @ w["fc_weight"][n] + w["fc_bias"][n]
        gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + gelu @ w["mlp_proj_weight"][n] + w["mlp_proj_bias"][n]
    return _layer_norm(x, w["lnf_weight"], w["lnf_bias"]), w["wte"]


def _llama(w: Weights, geometry: LlamaGeometry, ids: Any) -> tuple[Doubles, Doubles]:
    """Return the output of the last norm (B, T, C), and the output projection (V, C)."""
    g, nothing = geometry, np.zeros(1)
    cos, sin = (np.asarray(table, np.float64) for table in rotary_table(g.rotary, g.head_size, g.context))

    def linear(x: Doubles, name: str, n: int) -> Doubles:
        biases = w.get(f"{name}_bias")
        y: Doubles = x @ w[f"{name}_weight"][n] + (nothing if biases is None else biases[n])
        return y

    def positions(x: Doubles, name: str, n: int) -> Doubles:
        if g.qk_norm:
            x = _rms_norm(x, w[f"{name}_norm_weight"][n], g.epsilon)
        return x if n in g.layers_without_rotary else _rotated(x, cos, sin)

    x = w["wte"][ids].reshape(-1, g.context, g.channels)
    for n in range(g.layers):
        qkv = linear(_rms_norm(x, w["norm1_weight"][n], g.epsilon), "qkv", n)
        q, k, v = np.split(qkv, [g.attn_width, g.attn_width + g.key_value_width], axis=-1)
        keys, values = (np.repeat(part, g.heads // g.kv_heads, axis=1) for part in
                        (positions(_heads(k, g.kv_heads), "k", n), _heads(v, g.kv_heads)))  # fmt: skip
        x = x + linear(_attention(positions(_heads(q, g.heads), "q", n), keys, values), "attn_proj", n)
        gate, up = np.split(linear(_rms_norm(x, w["norm2_weight"][n], g.epsilon), "gate_up", n), 2, axis=-1)
        x = x + linear(gate / (1 + np.exp(-gate)) * up, "down", n)
    return _rms_norm(x, w["normf_weight"], g.epsilon), w["wte" if g.tied else "head"]


_MODELS: Mapping[str, Callable[[Weights, Any, Any], tuple[Doubles, Doubles]]] = {"gpt2": _gpt2, "llama": _llama}
"""Name of the architecture → its model up to the output projection."""


def _heads(x: Doubles, heads: int) -> Doubles:
    """Return (B, T, H D) as (B, H, T, D)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _attention(q: Doubles, k: Doubles, v: Doubles) -> Doubles:
    """Return causal attention, heads side by side: q, k and v (B, H, T, D), result (B, T, H D)."""
    later = np.triu(np.ones((q.shape[2], q.shape[2]), bool), 1)
    scores = np.where(later, -np.inf, q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]))
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = (e / e.sum(axis=-1, keepdims=True)) @ v
    side_by_side: Doubles = out.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1)
    return side_by_side


def _rotated(x: Doubles, cos: Doubles, sin: Doubles) -> Doubles:
    """Return heads (B, H, T, D) with their first dimensions rotated by halves: (i, i + M / 2)."""
    half = cos.shape[1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def _layer_norm(x: Doubles, weight: Doubles, bias: Doubles) -> Doubles:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed: Doubles = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias
    return normed


def _rms_norm(x: Doubles, weight: Doubles, epsilon: float) -> Doubles:
    normed: Doubles = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return normed
