"""The peer in JAX: the same GPT-2, trained by one jitted function per update, in a separate process.

Weights and tokens for the comparison of results come from the files of `benchmarks.peer`. JAX uses all cores that the
process may use; its weights, moments and gradients stay on its device, and are given back to it at each update
(`donate_argnums`), so that it may write in place.
"""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpt2_inputs import LINEAR, Tensors, initial_weights, token_batches
from benchmarks.model_sizes import Gpt2Sizes
from benchmarks.protocol import FLOAT32, TrainingSizes, UpdateFigures

DECAYED = {"wte", "wpe", *(f"{name}_weight" for name in LINEAR)}
"""Names of the tensors with weight decay."""
NORM_EPSILON, CLIP_EPSILON = 1e-5, 1e-6


def mean_loss(weights: Tensors, ids: Any, targets: Any, heads: int, kind: Any) -> Any:
    """Return the mean loss of ids and targets (B, T); linear layers and attention compute in `kind`, others in float32.

    Sums of products are float32, as in the kernels of the other sides.
    """

    def linear(x: Any, name: str, layer: int) -> Any:
        matrix, bias = weights[f"{name}_weight"][layer], weights[f"{name}_bias"][layer]
        product = jnp.matmul(x.astype(kind), matrix.astype(kind), preferred_element_type=jnp.float32)
        return (product + bias).astype(kind)

    def norm(x: Any, name: str, layer: int | None = None) -> Any:
        weight, bias = weights[f"{name}_weight"], weights[f"{name}_bias"]
        if layer is not None:
            weight, bias = weight[layer], bias[layer]
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPSILON) * weight + bias

    batch, length = ids.shape
    x = weights["wte"][ids] + weights["wpe"][:length]
    channels = x.shape[-1]
    for layer in range(weights["qkv_weight"].shape[0]):
        parts = jnp.split(linear(norm(x, "ln1", layer), "qkv", layer), 3, axis=-1)
        q, k, v = (part.reshape(batch, length, heads, channels // heads) for part in parts)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, length, channels)
        x = x + linear(mixed, "attn_proj", layer)
        hidden = jax.nn.gelu(linear(norm(x, "ln2", layer), "fc", layer), approximate=True)
        x = x + linear(hidden, "mlp_proj", layer)
    final = norm(x, "lnf").astype(kind)
    logits = jnp.matmul(final, weights["wte"].T.astype(kind), preferred_element_type=jnp.float32)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - at_target).mean()


class Jax:
    """Training with AdamW and clipping by the norm of all gradients, as `benchmarks.peer.PyTorch` has them."""

    def __init__(self, sizes: TrainingSizes, precision: str, folder: Path | None = None) -> None:
        """In a precision other than float32, products and attention are in bfloat16, weights in float32."""
        model = sizes.model
        if not isinstance(model, Gpt2Sizes):
            raise ValueError(f"the peer in JAX is a GPT-2, got {type(model).__name__}")
        self._weights = {name: jnp.asarray(tensor) for name, tensor in initial_weights(model, folder).items()}
        self._moments = tuple({name: jnp.zeros_like(w) for name, w in self._weights.items()} for _ in range(2))
        kind = jnp.float32 if precision == FLOAT32 else jnp.bfloat16
        self._step = jax.jit(_step(sizes, model.heads, kind), donate_argnums=(0, 1))
        self._updates = 0
        self._rates = iter(sizes.rates) if sizes.rates else itertools.repeat(sizes.lr)
        self._batches = token_batches(sizes, folder)

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates and return their figures."""
        losses, norms = [], []
        begin = time.perf_counter()
        for rate in itertools.islice(self._rates, updates):
            ids, targets = next(self._batches)
            self._updates += 1
            self._weights, self._moments, loss, norm = self._step(
                self._weights, self._moments, ids, targets, rate, self._updates
            )
            losses.append(float(loss))
            norms.append(float(norm))
        jax.block_until_ready(self._weights)
        return UpdateFigures(time.perf_counter() - begin, losses, norms)

    def close(self) -> None:
        """Do nothing: the threads of JAX end with the process."""


def _step(sizes: TrainingSizes, heads: int, kind: Any) -> Any:
    """Return the function of one update (Loshchilov and Hutter, 2019, algorithm 2, with the decay times the rate)."""

    def step(weights: Tensors, moments: Any, ids: Any, targets: Any, rate: Any, number: Any) -> Any:
        loss, gradients = jax.value_and_grad(mean_loss)(weights, ids, targets, heads, kind)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradients.values()))
        factor = jnp.minimum(1.0, sizes.clip / (norm + CLIP_EPSILON)) if sizes.clip else 1.0
        first, second, updated = {}, {}, {}
        for name, weight in weights.items():
            g = gradients[name] * factor
            m = first[name] = sizes.beta1 * moments[0][name] + (1.0 - sizes.beta1) * g
            v = second[name] = sizes.beta2 * moments[1][name] + (1.0 - sizes.beta2) * g * g
            decay = sizes.weight_decay if name in DECAYED else 0.0
            change = m / (1.0 - sizes.beta1**number) / (jnp.sqrt(v / (1.0 - sizes.beta2**number)) + sizes.eps)
            updated[name] = weight * (1.0 - rate * decay) - rate * change
        return updated, (first, second), loss, norm

    return step
