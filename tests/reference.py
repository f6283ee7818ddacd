"""GPT-2 in plain float64 NumPy: the slow twin that the product is held against.

It imports nothing of ours and shares no arithmetic with the kernels: every function is written from its formula, with
loops where they read better. The model is the published one: pre-LayerNorm blocks, learned positions, GELU in the tanh
form, biases everywhere, LayerNorm's epsilon 1e-5, an output projection tied to the token embedding.

Shapes: B sequences of T tokens, C channels, H heads, F = 4C hidden, L layers, V vocabulary. Matrices are stored
(inputs, outputs): a linear layer is ``y = x @ weight + bias``. A backward function takes the gradient of its forward's
output first and returns the gradients of its inputs in their order.

Every result that an implementation in less precision rounds is marked: `computed` is a result of arithmetic, with its
error in units of one rounding, and `stored` one that is kept in the format of the activations. The marks do nothing
here; `tests.error_bounds` perturbs the marked results to find out how far a correct implementation may be off.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.rounding_marks import computed, product, stored, summed, total

Array = NDArray[np.float64]
Ids = NDArray[np.integer]
Tensors = dict[str, Array]

LAYERNORM_EPSILON = 1e-5
GELU_SCALE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715
CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
DECAYED = ("wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")


# --- the tensors ------------------------------------------------------------------------------------------------------


def tensor_shapes(vocabulary: int, context: int, layers: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model."""
    v, t, n, c, f = vocabulary, context, layers, channels, 4 * channels
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


def random_tensors(
    rng: np.random.Generator, vocabulary: int, context: int, layers: int, channels: int, spread: float = 0.3
) -> Tensors:
    """Return weights in which no tensor is zero or one, so that each of them takes part in every gradient.

    The numbers are float32 ones: a float32 model that is given them starts from exactly the same weights.
    """
    tensors = {}
    for name, shape in tensor_shapes(vocabulary, context, layers, channels).items():
        centre = 1.0 if name in ("ln1_weight", "ln2_weight", "lnf_weight") else 0.0
        tensors[name] = (centre + spread * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)
    return tensors


# --- the operations ---------------------------------------------------------------------------------------------------


def embedding_forward(wte: Array, wpe: Array, ids: Ids) -> Array:
    """Ids (B, T) to (B, T, C)."""
    return total(wte[ids], wpe[: ids.shape[1]])


def embedding_backward(dx: Array, ids: Ids, vocabulary: int, context: int) -> tuple[Array, Array]:
    """Return the gradients of wte (V, C) and wpe (context, C)."""
    sequences, tokens, channels = dx.shape
    d_wte, d_wpe = np.zeros((vocabulary, channels)), np.zeros((context, channels))
    for b in range(sequences):
        for t in range(tokens):
            d_wte[ids[b, t]] += dx[b, t]
            d_wpe[t] += dx[b, t]

    def squares(gradient: int) -> Array:
        return embedding_backward(dx**2, ids, vocabulary, context)[gradient]

    return (
        summed(d_wte, int(np.bincount(ids.ravel()).max()), lambda: squares(0)),
        summed(d_wpe, sequences, lambda: squares(1)),
    )


def layernorm_statistics(x: Array) -> tuple[Array, Array]:
    """Return the mean and the reciprocal standard deviation of each row."""
    channels = x.shape[-1]
    mean = _row_means(x)[..., 0]
    # The relative error of a sum of positive terms is sqrt(n / 3), halved by the root; then some 4 operations. An error
    # of the mean adds nothing to first order, as the centred numbers add up to 0.
    rstd = 1.0 / np.sqrt(x.var(axis=-1) + LAYERNORM_EPSILON)
    return mean, computed(rstd, lambda: rstd * math.sqrt(channels / 12.0 + 4.0))


def normalised(x: Array) -> tuple[Array, Array]:
    """Return the rows of x with mean 0 and variance 1, and their reciprocal standard deviations (..., 1)."""
    mean, rstd = (statistic[..., None] for statistic in layernorm_statistics(x))
    normal = (x - mean) * rstd
    return stored(computed(normal, lambda: 2.0 * np.abs(normal))), rstd


def layernorm_forward(x: Array, weight: Array, bias: Array) -> Array:
    """Normalise each row of x (..., C), then scale and shift it."""
    normal, _ = normalised(x)
    return computed(normal * weight + bias, lambda: 2.0 * np.abs(normal * weight) + np.abs(bias))


def layernorm_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias."""
    normal, rstd = normalised(x)
    d_normal = dy * weight
    along_one, along_normal = (_row_means(terms) for terms in (d_normal, d_normal * normal))
    dx = rstd * (d_normal - along_one - normal * along_normal)

    def units() -> Array:
        size = np.abs(d_normal) + np.abs(along_one) + np.abs(normal * along_normal)
        return np.asarray(2.0 * rstd * size)

    return computed(dx, units), _sum_rows(dy * normal), _sum_rows(dy)


def linear_forward(x: Array, weight: Array, bias: Array) -> Array:
    """X (..., I) to (..., O)."""
    return product(x, weight, bias)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias."""
    d_weight = product(x.reshape(-1, x.shape[-1]).T, dy.reshape(-1, dy.shape[-1]))
    return product(dy, weight.T), d_weight, _sum_rows(dy)


def gelu_forward(x: Array) -> Array:
    """GELU in the tanh form."""
    y = 0.5 * x * (1.0 + np.tanh(GELU_SCALE * (x + GELU_CUBIC * x**3)))
    return computed(y, lambda: gelu_units(x)[0])


def gelu_backward(dy: Array, x: Array) -> Array:
    """Return the gradient of x."""
    tanh = np.tanh(GELU_SCALE * (x + GELU_CUBIC * x**3))
    d_inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    dx = dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * d_inner)
    return computed(dx, lambda: np.abs(dy) * gelu_units(x)[1])


def gelu_units(x: Array) -> tuple[Array, Array]:
    """Return the errors of GELU and of its derivative, in units of the rounding error of the number 1.

    GELU is y = x s with s = 1 / (1 + e**-a), a = x (c1 + c2 x**2), and its derivative s + y (1 - s) a'. The argument is
    off by 3 |a| units, and e**-a relatively by as much, and by 3 units of the exponential itself, which makes s (1 - s)
    times as much of s. The sum and the division add 2 s. The error of 1 - s is that of s, and at most 1 - s: then s is
    rounded to 1. Each further product and sum adds one unit of its result.
    """
    a = 2.0 * GELU_SCALE * (x + GELU_CUBIC * x**3)
    slope = 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    s, rest = 0.5 * (1.0 + np.tanh(0.5 * a)), 0.5 * (1.0 - np.tanh(0.5 * a))
    s_error = s * (3.0 * (1.0 + np.abs(a)) * rest + 2.0)
    y, y_error = np.abs(x) * s, np.abs(x) * (s_error + s)
    rest_error = np.minimum(s_error + rest, rest * 2.0**24)
    return y_error, s_error + (y_error * rest + y * rest_error + 6.0 * y * rest) * slope + s


def attention_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """One causal head on (T, D): its output, its probabilities (T, T), its log-sum-exp of scaled scores (T,)."""
    tokens, size = q.shape
    scores = product(q, k.T) / math.sqrt(size)
    scores[np.triu_indices(tokens, 1)] = -np.inf  # a token sees itself and those before it
    probabilities, lse = softmax(scores)
    probabilities = stored(probabilities)
    return product(probabilities, v), probabilities, lse


def softmax(x: Array) -> tuple[Array, Array]:
    """Return the softmax of each row, and the log-sum-exp."""
    highest = x.max(axis=-1)
    depth = np.maximum(x - highest[..., None], -1e4)  # e**-1e4 is 0, and not infinitely far from anything
    depth = computed(depth, lambda: np.abs(depth))
    exponentials = np.exp(depth)
    exponentials = computed(exponentials, lambda: 3.0 * exponentials)
    sums = exponentials.sum(axis=-1)
    sums = summed(sums, x.shape[-1], lambda: (exponentials**2).sum(axis=-1))
    probabilities, lse = exponentials / sums[..., None], highest + np.log(sums)
    return (
        computed(probabilities, lambda: probabilities),
        computed(lse, lambda: np.abs(lse) + 3.0 * np.abs(np.log(sums)) + 1.0),
    )


def attention_forward(qkv: Array, heads: int) -> tuple[Array, Array]:
    """Turn queries, keys and values (B, T, 3C) into the heads' outputs (B, T, C) and log-sum-exp (B, H, T)."""
    sequences, tokens, width = qkv.shape
    out, lse = np.empty((sequences, tokens, width // 3)), np.empty((sequences, heads, tokens))
    for b in range(sequences):
        for h in range(heads):
            q, k, v = head_columns(width, heads, h)
            out[b, :, q], _, lse[b, h] = attention_head(qkv[b, :, q], qkv[b, :, k], qkv[b, :, v])
    return out, lse


def attention_backward(d_out: Array, qkv: Array, heads: int) -> Array:
    """Return the gradient of qkv."""
    d_qkv = np.empty_like(qkv)
    for b in range(qkv.shape[0]):
        for h in range(heads):
            columns_q, columns_k, columns_v = head_columns(qkv.shape[2], heads, h)
            q, k, v = qkv[b, :, columns_q], qkv[b, :, columns_k], qkv[b, :, columns_v]
            d = d_out[b, :, columns_q]
            out, probabilities, _ = attention_head(q, k, v)
            d_scores = softmax_backward(product(d, v.T), probabilities, d, stored(out)) / math.sqrt(q.shape[1])
            d_scores = stored(d_scores)
            d_qkv[b, :, columns_q] = product(d_scores, k)
            d_qkv[b, :, columns_k] = product(d_scores.T, q)
            d_qkv[b, :, columns_v] = product(probabilities.T, d)
    return d_qkv


def softmax_backward(d_probabilities: Array, probabilities: Array, d_out: Array, out: Array) -> Array:
    """Return the gradient of the scores of one head: P (dP - D), D = sum(dP P) = sum(d_out out) of each row."""
    inner = (d_out * out).sum(axis=1)
    inner = summed(inner, out.shape[1], lambda: ((d_out * out) ** 2).sum(axis=1))[:, None]
    d_scores = probabilities * (d_probabilities - inner)
    return computed(d_scores, lambda: 2.0 * probabilities * (np.abs(d_probabilities) + np.abs(inner)))


def head_columns(width: int, heads: int, head: int) -> tuple[slice, slice, slice]:
    """Return where one head's query, key and value stand in a row of 3C numbers; the first also for its output."""
    channels = width // 3
    size = channels // heads
    q, k, v = (slice(part * channels + head * size, part * channels + (head + 1) * size) for part in range(3))
    return q, k, v


def cross_entropy_forward(logits: Array, targets: Ids) -> Array:
    """Logits (..., V) and targets (...) to the loss of every row (...)."""
    _, lse = softmax(logits)
    of_target = np.take_along_axis(logits, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return computed(lse - of_target, lambda: np.abs(lse - of_target))


def cross_entropy_backward(logits: Array, targets: Ids, scale: float) -> Array:
    """Return the gradient of scale * (sum of the losses): scale * (softmax - one hot)."""
    probabilities, _ = softmax(logits)
    one_hot = np.arange(logits.shape[-1]) == targets[..., None]
    return computed(scale * (probabilities - one_hot), lambda: 2.0 * scale * (probabilities + one_hot))


def _row_means(x: Array) -> Array:
    """Return the mean of each row, (..., 1)."""
    count = x.shape[-1]
    return summed(x.mean(axis=-1, keepdims=True), count, lambda: ((x / count) ** 2).sum(axis=-1, keepdims=True))


def _sum_rows(x: Array) -> Array:
    rows: Array = x.reshape(-1, x.shape[-1])
    return summed(rows.sum(axis=0), len(rows), lambda: (rows**2).sum(axis=0))


# --- the model --------------------------------------------------------------------------------------------------------


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
    blocks: list[Block] = field(default_factory=list)
    x_final: Array = field(default_factory=lambda: np.empty(0))  # (B, T, C), before the last LayerNorm
    lnf: Array = field(default_factory=lambda: np.empty(0))
    logits: Array = field(default_factory=lambda: np.empty(0))  # (B, T, V)


def block_tensors(weights: Tensors, layer: int) -> Tensors:
    """Return the tensors of one layer, under their own names."""
    return {name: tensor[layer] for name, tensor in weights.items() if name[:3] not in ("wte", "wpe", "lnf")}


def block_forward(w: Tensors, x: Array, heads: int) -> tuple[Array, Block]:
    """One block, with the tensors of its layer."""
    ln1 = stored(layernorm_forward(x, w["ln1_weight"], w["ln1_bias"]))
    qkv = stored(linear_forward(ln1, w["qkv_weight"], w["qkv_bias"]))
    attn, lse = attention_forward(qkv, heads)
    attn = stored(attn)
    x_mid = total(x, linear_forward(attn, w["attn_proj_weight"], w["attn_proj_bias"]))
    ln2 = stored(layernorm_forward(x_mid, w["ln2_weight"], w["ln2_bias"]))
    fc = stored(linear_forward(ln2, w["fc_weight"], w["fc_bias"]))
    gelu = stored(gelu_forward(fc))
    out = total(x_mid, linear_forward(gelu, w["mlp_proj_weight"], w["mlp_proj_bias"]))
    return out, Block(x, ln1, qkv, attn, lse, x_mid, ln2, fc, gelu)


def block_backward(w: Tensors, kept: Block, d_out: Array, heads: int) -> tuple[Array, Tensors]:
    """Return the gradient of the block's input and of its tensors."""
    g: Tensors = {}
    d_gelu, g["mlp_proj_weight"], g["mlp_proj_bias"] = linear_backward(stored(d_out), kept.gelu, w["mlp_proj_weight"])
    d_fc = stored(gelu_backward(stored(d_gelu), kept.fc))
    d_ln2, g["fc_weight"], g["fc_bias"] = linear_backward(d_fc, kept.ln2, w["fc_weight"])
    d_through, g["ln2_weight"], g["ln2_bias"] = layernorm_backward(d_ln2, kept.x_mid, w["ln2_weight"])
    d_mid = total(d_out, d_through)
    d_attn, g["attn_proj_weight"], g["attn_proj_bias"] = linear_backward(
        stored(d_mid), kept.attn, w["attn_proj_weight"]
    )
    d_qkv = stored(attention_backward(stored(d_attn), kept.qkv, heads))
    d_ln1, g["qkv_weight"], g["qkv_bias"] = linear_backward(d_qkv, kept.ln1, w["qkv_weight"])
    d_through, g["ln1_weight"], g["ln1_bias"] = layernorm_backward(d_ln1, kept.x, w["ln1_weight"])
    return total(d_mid, d_through), g


def forward(weights: Tensors, ids: Ids, heads: int) -> Record:
    """Run the model on ids (B, T)."""
    record = Record(ids, heads)
    x = embedding_forward(weights["wte"], weights["wpe"], ids)
    for layer in range(len(weights["qkv_weight"])):
        x, kept = block_forward(block_tensors(weights, layer), x, heads)
        record.blocks.append(kept)
    record.x_final = x
    record.lnf = stored(layernorm_forward(x, weights["lnf_weight"], weights["lnf_bias"]))
    record.logits = product(record.lnf, weights["wte"].T)
    return record


def loss_sum(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> float:
    """Return the sum of the losses of all tokens."""
    return float(cross_entropy_forward(forward(weights, ids, heads).logits, targets).sum())


def loss_mean(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> float:
    """Return the loss of the average token."""
    return loss_sum(weights, ids, targets, heads) / targets.size


def backward(weights: Tensors, record: Record, targets: Ids, scale: float = 1.0) -> tuple[Tensors, Array]:
    """Return the gradients of scale * loss_sum: of every tensor, and of x_final (B, T, C)."""
    d_logits = stored(cross_entropy_backward(record.logits, targets, scale))
    grads = {name: np.zeros_like(tensor) for name, tensor in weights.items()}
    vocabulary, channels = weights["wte"].shape
    d_wte_out = product(d_logits.reshape(-1, vocabulary).T, record.lnf.reshape(-1, channels))
    d_lnf = product(d_logits, weights["wte"])
    dx, grads["lnf_weight"], grads["lnf_bias"] = layernorm_backward(d_lnf, record.x_final, weights["lnf_weight"])
    d_x_final = dx
    for layer in reversed(range(len(record.blocks))):
        dx, of_layer = block_backward(block_tensors(weights, layer), record.blocks[layer], dx, record.heads)
        for name, gradient in of_layer.items():
            grads[name][layer] = gradient
    d_wte_in, grads["wpe"] = embedding_backward(dx, record.ids, vocabulary, len(weights["wpe"]))
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


# --- the optimizer ----------------------------------------------------------------------------------------------------


def global_norm(grads: Tensors) -> float:
    """Return the Euclidean norm of all gradients as one vector."""
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in grads.values()))


def clip_by_global_norm(grads: Tensors, max_norm: float) -> tuple[Tensors, float]:
    """Return the gradients scaled so that their norm is at most max_norm, and the norm that they had."""
    norm = global_norm(grads)
    scale = min(1.0, max_norm / (norm + CLIP_EPSILON))
    return {name: scale * gradient for name, gradient in grads.items()}, norm


@dataclass(frozen=True)
class AdamW:
    """The optimizer's constants; decay applies to the tensors named only."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decayed: tuple[str, ...] = DECAYED


def adamw(
    weights: Tensors, grads: Tensors, m: Tensors, v: Tensors, step: int, settings: AdamW
) -> tuple[Tensors, Tensors, Tensors]:
    """Return weights, m and v after update number `step` (the first is 1), in the order of torch.optim.AdamW."""
    new_weights, new_m, new_v = {}, {}, {}
    for name, w in weights.items():
        decay = settings.weight_decay if name in settings.decayed else 0.0
        new_m[name] = settings.beta1 * m[name] + (1.0 - settings.beta1) * grads[name]
        new_v[name] = settings.beta2 * v[name] + (1.0 - settings.beta2) * grads[name] ** 2
        m_unbiased = new_m[name] / (1.0 - settings.beta1**step)
        v_unbiased = new_v[name] / (1.0 - settings.beta2**step)
        decoupled = w * (1.0 - settings.lr * decay)
        new_weights[name] = decoupled - settings.lr * m_unbiased / (np.sqrt(v_unbiased) + settings.epsilon)
    return new_weights, new_m, new_v
