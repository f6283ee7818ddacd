"""GPT-2 in float64: blocks, the whole model, its loss and gradients.

The published model (Radford et al., 2019): pre-LayerNorm blocks, learned positions, GELU in the tanh form, biases
everywhere, and an output projection tied to the token embedding.
"""

from dataclasses import dataclass, field

import numpy as np

from tests.reference.attention import attention_backward, attention_forward
from tests.reference.dropout import residual_backward, residual_forward
from tests.reference.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    projection_backward,
)
from tests.reference.lora import LoraSizes, adapted_backward, adapted_forward
from tests.reference.tensors import Array, Ids, Tensors
from tests.rounding_marks import computed, product, stored, total


@dataclass
class Block:
    """Activations of one transformer block that backward needs, each (B, T, its width)."""

    x: Array
    ln1: Array
    qkv: Array
    attn: Array
    lse: Array  # (B, H, T)
    x_mid: Array
    ln2: Array
    fc: Array
    gelu: Array


@dataclass
class Record:
    """A forward pass: what every block saw, and what came out."""

    ids: Ids
    heads: int
    lora: LoraSizes | None = None
    mask: Array | None = None
    """Factors of the embeddings (B, T, C), 0 for those that are dropped."""
    blocks: list[Block] = field(default_factory=list)
    x_final: Array = field(default_factory=lambda: np.empty(0))  # (B, T, C), before the last LayerNorm
    lnf: Array = field(default_factory=lambda: np.empty(0))
    logits: Array = field(default_factory=lambda: np.empty(0))  # (B, T, V)


def block_tensors(weights: Tensors, layer: int) -> Tensors:
    """Return the tensors of one layer, under their own names."""
    return {name: tensor[layer] for name, tensor in weights.items() if name[:3] not in ("wte", "wpe", "lnf")}


def block_forward(w: Tensors, x: Array, heads: int, lora: LoraSizes | None = None) -> tuple[Array, Block]:
    """One block, with the tensors of its layer."""
    ln1 = stored(layernorm_forward(x, w["ln1_weight"], w["ln1_bias"]))
    qkv = stored(adapted_forward(w, "qkv", ln1, lora))
    attn, lse = attention_forward(qkv, heads, mask=w.get("attention_mask"))
    attn = stored(attn)
    x_mid = residual_forward(w, 0, x, adapted_forward(w, "attn_proj", attn, lora))
    ln2 = stored(layernorm_forward(x_mid, w["ln2_weight"], w["ln2_bias"]))
    fc = stored(adapted_forward(w, "fc", ln2, lora))
    gelu = stored(gelu_forward(fc))
    out = residual_forward(w, 1, x_mid, adapted_forward(w, "mlp_proj", gelu, lora))
    return out, Block(x, ln1, qkv, attn, lse, x_mid, ln2, fc, gelu)


def block_backward(
    w: Tensors, kept: Block, d_out: Array, heads: int, lora: LoraSizes | None = None
) -> tuple[Array, Tensors]:
    """Return the gradient of the block's input and of its tensors."""
    d_gelu, g = adapted_backward(w, "mlp_proj", residual_backward(w, 1, d_out), kept.gelu, lora)
    d_fc = stored(gelu_backward(stored(d_gelu), kept.fc))
    d_ln2, of_fc = adapted_backward(w, "fc", d_fc, kept.ln2, lora)
    d_through, g["ln2_weight"], g["ln2_bias"] = layernorm_backward(d_ln2, kept.x_mid, w["ln2_weight"])
    d_mid = total(d_out, d_through)
    d_attn, of_proj = adapted_backward(w, "attn_proj", residual_backward(w, 0, d_mid), kept.attn, lora)
    d_qkv = stored(attention_backward(stored(d_attn), kept.qkv, heads, mask=w.get("attention_mask")))
    d_ln1, of_qkv = adapted_backward(w, "qkv", d_qkv, kept.ln1, lora)
    d_through, g["ln1_weight"], g["ln1_bias"] = layernorm_backward(d_ln1, kept.x, w["ln1_weight"])
    return total(d_mid, d_through), g | of_fc | of_proj | of_qkv


def _dropped(x: Array, mask: Array | None) -> Array:
    return x if mask is None else computed(x * mask, lambda: np.abs(x * mask))


def forward(weights: Tensors, ids: Ids, heads: int, lora: LoraSizes | None = None, mask: Array | None = None) -> Record:
    """Run the model on ids (B, T), with embeddings that are multiplied by `mask`."""
    record = Record(ids, heads, lora, mask)
    x = _dropped(embedding_forward(weights["wte"], weights["wpe"], ids), mask)
    for layer in range(len(weights["qkv_weight"])):
        x, kept = block_forward(block_tensors(weights, layer), x, heads, lora)
        record.blocks.append(kept)
    record.x_final = x
    record.lnf = stored(layernorm_forward(x, weights["lnf_weight"], weights["lnf_bias"]))
    record.logits = product(record.lnf, weights["wte"].T)
    return record


def losses(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> Array:
    """Return the loss of every token, (B, T)."""
    return cross_entropy_forward(forward(weights, ids, heads).logits, targets)


def loss_sum(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> float:
    """Return the sum of the losses of all tokens."""
    return float(losses(weights, ids, targets, heads).sum())


def loss_mean(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> float:
    """Return the loss of the average token."""
    return loss_sum(weights, ids, targets, heads) / targets.size


def backward(
    weights: Tensors, record: Record, targets: Ids, scale: float = 1.0, terms: tuple[float, float] = (0.0, 0.0)
) -> tuple[Tensors, Array]:
    """Return the gradients of scale * loss_sum: of every tensor, and of x_final (B, T, C)."""
    d_logits = stored(cross_entropy_backward(record.logits, targets, scale, *terms))
    grads = {name: np.zeros_like(tensor) for name, tensor in weights.items()}
    d_lnf, d_wte_out = projection_backward(d_logits, record.lnf, weights["wte"])
    dx, grads["lnf_weight"], grads["lnf_bias"] = layernorm_backward(d_lnf, record.x_final, weights["lnf_weight"])
    d_x_final = dx
    for layer in reversed(range(len(record.blocks))):
        dx, of_layer = block_backward(
            block_tensors(weights, layer), record.blocks[layer], dx, record.heads, record.lora
        )
        for name, gradient in of_layer.items():
            grads[name][layer] = gradient
    dx = _dropped(dx, record.mask)
    d_wte_in, grads["wpe"] = embedding_backward(dx, record.ids, len(weights["wte"]), len(weights["wpe"]))
    grads["wte"] = total(d_wte_in, d_wte_out)  # tied: it is used on both ends
    return grads, d_x_final


def loss_and_gradients(
    weights: Tensors, ids: Ids, targets: Ids, heads: int, scale: float = 1.0
) -> tuple[float, Tensors]:
    """Return the sum of the losses (not scaled) and the gradient of scale times it."""
    record = forward(weights, ids, heads)
    loss = float(cross_entropy_forward(record.logits, targets).sum())
    return loss, backward(weights, record, targets, scale)[0]


def next_token_logits(weights: Tensors, ids: Ids, heads: int) -> Array:
    """Return the logits (V,) of the token after ids (T,)."""
    logits: Array = forward(weights, ids[None, :], heads).logits[0, -1]
    return logits
