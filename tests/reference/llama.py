"""The Llama family in float64: blocks, the whole model, its loss and gradients.

The published model (Touvron et al., LLaMA, 2023) and its relatives: blocks with an RMS norm before attention and before
the MLP, rotary positions, grouped-query attention and a gated MLP. The variants are those of `LlamaSizes`.
"""

from dataclasses import dataclass, field

import numpy as np

from tests.reference.attention import attention_backward, attention_forward
from tests.reference.dropout import residual_backward, residual_forward
from tests.reference.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    projection_backward,
    token_embedding_backward,
)
from tests.reference.llama_layers import (
    head_norm_backward,
    head_norm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    swiglu_backward,
    swiglu_forward,
)
from tests.reference.llama_tensors import OF_MODEL, LlamaSizes
from tests.reference.lora import adapted_backward, adapted_forward
from tests.reference.rotary import rotary_backward, rotary_forward, rotary_tables
from tests.reference.tensors import Array, Ids, Tensors
from tests.rounding_marks import product, stored, total


@dataclass
class LlamaBlock:
    """Activations of one transformer block that backward needs, each (B, T, its width)."""

    x: Array
    norm1: Array
    raw: Array  # queries, keys and values before the norm of heads and the rotary positions
    qkv: Array
    attn: Array
    lse: Array  # (B, H, T)
    x_mid: Array
    norm2: Array
    gate_up: Array
    mlp: Array  # SiLU(gate) * up


@dataclass
class LlamaRecord:
    """A forward pass: the activations of every block, and the results."""

    ids: Ids
    sizes: LlamaSizes
    blocks: list[LlamaBlock] = field(default_factory=list)
    x_final: Array = field(default_factory=lambda: np.empty(0))  # (B, T, C), before the last norm
    normf: Array = field(default_factory=lambda: np.empty(0))
    logits: Array = field(default_factory=lambda: np.empty(0))  # (B, T, V)


def block_tensors(weights: Tensors, layer: int) -> Tensors:
    """Return the tensors of one layer, under their own names."""
    return {name: tensor[layer] for name, tensor in weights.items() if name not in OF_MODEL}


def positions_forward(w: Tensors, raw: Array, sizes: LlamaSizes, layer: int) -> Array:
    """Normalise and rotate the queries and keys of a layer, as far as the model does."""
    q, k, v = _parts(raw, sizes)
    if sizes.qk_norm:
        q = stored(head_norm_forward(q, w["q_norm_weight"], sizes.epsilon))
        k = stored(head_norm_forward(k, w["k_norm_weight"], sizes.epsilon))
    if layer not in sizes.layers_without_rotary:
        cos, sin = rotary_tables(sizes.rotary, sizes.head_size, raw.shape[1])
        q, k = (stored(rotary_forward(part, cos, sin)) for part in (q, k))
    return np.concatenate([q, k, v], axis=2).reshape(raw.shape)


def positions_backward(
    w: Tensors, raw: Array, d_qkv: Array, sizes: LlamaSizes, layer: int
) -> tuple[Array, dict[str, Array]]:
    """Return the gradient of `raw`, and those of the weights of the norms of heads."""
    d_q, d_k, d_v = _parts(d_qkv, sizes)
    g: Tensors = {}
    if layer not in sizes.layers_without_rotary:
        cos, sin = rotary_tables(sizes.rotary, sizes.head_size, raw.shape[1])
        d_q, d_k = (stored(rotary_backward(part, cos, sin)) for part in (d_q, d_k))
    if sizes.qk_norm:
        q, k, _ = _parts(raw, sizes)
        d_q, g["q_norm_weight"] = head_norm_backward(d_q, q, w["q_norm_weight"], sizes.epsilon)
        d_k, g["k_norm_weight"] = head_norm_backward(d_k, k, w["k_norm_weight"], sizes.epsilon)
        d_q, d_k = stored(d_q), stored(d_k)
    return np.concatenate([d_q, d_k, d_v], axis=2).reshape(raw.shape), g


def _parts(qkv: Array, sizes: LlamaSizes) -> list[Array]:
    """Return the heads of queries, keys and values, (B, T, heads, D)."""
    heads = qkv.reshape(*qkv.shape[:2], -1, sizes.head_size)
    return np.split(heads, [sizes.heads, sizes.heads + sizes.kv_heads], axis=2)


def block_forward(w: Tensors, x: Array, sizes: LlamaSizes, layer: int) -> tuple[Array, LlamaBlock]:
    """One block, with the tensors of its layer."""
    norm1 = stored(rmsnorm_forward(x, w["norm1_weight"], sizes.epsilon))
    raw = stored(adapted_forward(w, "qkv", norm1, sizes.lora))
    qkv = positions_forward(w, raw, sizes, layer)
    attn, lse = attention_forward(qkv, sizes.heads, sizes.kv_heads, w.get("attention_mask"))
    attn = stored(attn)
    x_mid = residual_forward(w, 0, x, adapted_forward(w, "attn_proj", attn, sizes.lora))
    norm2 = stored(rmsnorm_forward(x_mid, w["norm2_weight"], sizes.epsilon))
    gate_up = stored(adapted_forward(w, "gate_up", norm2, sizes.lora))
    mlp = stored(swiglu_forward(gate_up))
    out = residual_forward(w, 1, x_mid, adapted_forward(w, "down", mlp, sizes.lora))
    return out, LlamaBlock(x, norm1, raw, qkv, attn, lse, x_mid, norm2, gate_up, mlp)


def block_backward(w: Tensors, kept: LlamaBlock, d_out: Array, sizes: LlamaSizes, layer: int) -> tuple[Array, Tensors]:
    """Return the gradient of the block's input and of its tensors."""
    d_mlp, g = adapted_backward(w, "down", residual_backward(w, 1, d_out), kept.mlp, sizes.lora)
    d_gate_up = stored(swiglu_backward(stored(d_mlp), kept.gate_up))
    d_norm2, of_gate_up = adapted_backward(w, "gate_up", d_gate_up, kept.norm2, sizes.lora)
    d_through, g["norm2_weight"] = rmsnorm_backward(d_norm2, kept.x_mid, w["norm2_weight"], sizes.epsilon)
    d_mid = total(d_out, d_through)
    d_attn, of_proj = adapted_backward(w, "attn_proj", residual_backward(w, 0, d_mid), kept.attn, sizes.lora)
    heads = sizes.heads, sizes.kv_heads
    d_qkv = stored(attention_backward(stored(d_attn), kept.qkv, *heads, w.get("attention_mask")))
    d_raw, of_norms = positions_backward(w, kept.raw, d_qkv, sizes, layer)
    d_norm1, of_qkv = adapted_backward(w, "qkv", d_raw, kept.norm1, sizes.lora)
    d_through, g["norm1_weight"] = rmsnorm_backward(d_norm1, kept.x, w["norm1_weight"], sizes.epsilon)
    g |= of_norms | of_gate_up | of_proj | of_qkv
    return total(d_mid, d_through), {name: g[name] for name in w if name in g}


def forward(weights: Tensors, ids: Ids, sizes: LlamaSizes) -> LlamaRecord:
    """Run the model on ids (B, T)."""
    record = LlamaRecord(ids, sizes)
    x: Array = weights["wte"][ids]
    for layer in range(sizes.layers):
        x, kept = block_forward(block_tensors(weights, layer), x, sizes, layer)
        record.blocks.append(kept)
    record.x_final = x
    record.normf = stored(rmsnorm_forward(x, weights["normf_weight"], sizes.epsilon))
    record.logits = product(record.normf, head_of(weights).T)
    return record


def head_of(weights: Tensors) -> Array:
    """Return the rows of the output projection, (V, C): the token embedding if they are tied."""
    return weights.get("head", weights["wte"])


def losses(weights: Tensors, ids: Ids, targets: Ids, sizes: LlamaSizes) -> Array:
    """Return the loss of every token, (B, T)."""
    return cross_entropy_forward(forward(weights, ids, sizes).logits, targets)


def backward(
    weights: Tensors, record: LlamaRecord, targets: Ids, scale: float = 1.0, terms: tuple[float, float] = (0.0, 0.0)
) -> tuple[Tensors, Array]:
    """Return the gradients of scale * (sum of the losses): of every tensor, and of x_final (B, T, C)."""
    sizes, grads = record.sizes, {name: np.zeros_like(tensor) for name, tensor in weights.items()}
    d_logits = stored(cross_entropy_backward(record.logits, targets, scale, *terms))
    d_normf, d_head = projection_backward(d_logits, record.normf, head_of(weights))
    dx, grads["normf_weight"] = rmsnorm_backward(d_normf, record.x_final, weights["normf_weight"], sizes.epsilon)
    d_x_final = dx
    for layer in reversed(range(sizes.layers)):
        dx, of_layer = block_backward(block_tensors(weights, layer), record.blocks[layer], dx, sizes, layer)
        for name, gradient in of_layer.items():
            grads[name][layer] = gradient
    d_wte = token_embedding_backward(dx, record.ids, sizes.vocabulary)
    if "head" in weights:
        grads["wte"], grads["head"] = d_wte, d_head
    else:
        grads["wte"] = total(d_wte, d_head)
    return grads, d_x_final
