"""Linear layers with low-rank adapters in float64 (LoRA, Hu et al., 2021): ``y = x W + bias + scale (x A^T) B``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tests.reference.layers import linear_backward, linear_forward
from tests.reference.tensors import Array, Tensors
from tests.rounding_marks import multiple, product, stored, total


@dataclass(frozen=True)
class LoraSizes:
    """The adapters of a model: rank and factor of each, and the columns of the matrices that have one."""

    rank: int
    scale: float
    columns: Mapping[str, tuple[tuple[int, int], ...]] = field(hash=False)
    """Matrix, such as "qkv" → first column, and the one after the last, of each part that has an adapter."""
    dropout: float = 0.0
    """Probability; the masks, which are 0 or 1 / (1 - p), are the tensors "qkv_mask" and so on, (L, B, T, inputs)."""

    def ranks(self, name: str) -> int:
        """Return the ranks of the adapters of a matrix together."""
        return self.rank * len(self.columns.get(name, ()))

    def blocks(self, name: str, outputs: int) -> Array:
        """Return 1 for the elements of B (ranks, outputs) that an adapter has, 0 for the others."""
        mask = np.zeros((self.ranks(name), outputs))
        for i, (first, last) in enumerate(self.columns.get(name, ())):
            mask[i * self.rank : (i + 1) * self.rank, first:last] = 1
        return mask

    def random_tensors(
        self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], spread: float
    ) -> dict[str, Array]:
        """Return random adapters in float32 numbers, for a model with tensors of these shapes."""
        tensors: dict[str, Array] = {}
        for name in self.columns:
            layers, inputs, outputs = shapes[f"{name}_weight"]
            for key, width in (("a", inputs), ("b", outputs)):
                shape = (layers, self.ranks(name), width)
                values = spread * rng.standard_normal(prod(shape)).reshape(shape)
                tensors[f"{name}_{key}"] = values.astype(np.float32).astype(np.float64)
            tensors[f"{name}_b"] *= self.blocks(name, outputs)
        return tensors


def adapted_forward(w: Tensors, name: str, x: Array, lora: LoraSizes | None) -> Array:
    """Return the output of a linear layer, with its adapters if it has some."""
    out = linear_forward(x, w[f"{name}_weight"], w.get(f"{name}_bias"))
    if lora is None or name not in lora.columns:
        return out
    return total(out, product(_inner(w, name, x, lora), w[f"{name}_b"]))


def adapted_backward(w: Tensors, name: str, d_out: Array, x: Array, lora: LoraSizes | None) -> tuple[Array, Tensors]:
    """Return the gradient of the input, and those of the tensors of the layer."""
    dx, d_weight, d_bias = linear_backward(d_out, x, w[f"{name}_weight"])
    grads = {f"{name}_weight": d_weight, f"{name}_bias": d_bias}
    if lora is None or name not in lora.columns:
        return dx, grads
    a, b = w[f"{name}_a"], w[f"{name}_b"]
    d_inner = stored(multiple(lora.scale, product(d_out, b.T)))
    rows = (-1, x.shape[-1]), (-1, d_out.shape[-1]), (-1, len(a))
    given = _dropped(w, name, x)
    grads[f"{name}_a"] = product(d_inner.reshape(rows[2]).T, given.reshape(rows[0]))
    d_b = product(_inner(w, name, x, lora).reshape(rows[2]).T, d_out.reshape(rows[1]))
    grads[f"{name}_b"] = d_b * lora.blocks(name, d_out.shape[-1])
    return total(dx, product(d_inner, a) * w.get(f"{name}_mask", np.ones(()))), grads


def _inner(w: Tensors, name: str, x: Array, lora: LoraSizes) -> Array:
    return stored(multiple(lora.scale, product(_dropped(w, name, x), w[f"{name}_a"].T)))


def _dropped(w: Tensors, name: str, x: Array) -> Array:
    mask = w.get(f"{name}_mask")
    return x if mask is None else stored(x * mask)
