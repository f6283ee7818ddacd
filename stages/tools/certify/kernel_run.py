"""The forward pass of one sequence by the kernels of a precision, layer by layer, with the numbers that they store.

A block is run as a model of one layer, by the kernels that a training runs: each block is the same calls on the same
numbers as in the whole model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import ATTENTION_TILE, GemmBackend, gemm_backend
from threadloom.kernels.common import softmax_rows
from threadloom.kernels.matmul import Op, gemm
from threadloom.kernels.simd import upcast_bf16
from threadloom.pipeline import Arena
from threadloom.stages.config import Precision
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.models import Geometry, architecture_of
from threadloom.stages.resolve import float32_settings
from threadloom.stages.training import compute_for

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KernelLayer:
    """Results of one block as the kernels store them, upcast to float32."""

    qkv: Floats
    """Queries, keys and values, (T, 3C)."""
    attn: Floats
    """The heads' outputs, (T, C)."""
    x: Floats
    """The residual stream after the block, (T, C)."""
    heads: tuple["HeadScores", ...] | None
    """None in bf16, whose kernel has scores of another layout and unnormalised probabilities."""


@dataclass(frozen=True)
class HeadScores:
    """Scores and probabilities of one head, (T, T), with zeros where they are masked."""

    scores: Floats
    probabilities: Floats


def head_scores(q: Floats, k: Floats) -> HeadScores:
    """Return the scores of the queries and keys (T, D) of one head, which the kernels do not keep.

    The calls are those of `kernels.float32.attention`, and in float16 of `kernels.bits16.attention.fp16` before it
    rounds the probabilities.
    """
    length, scale = len(q), 1.0 / math.sqrt(q.shape[1])
    found = np.zeros((2, length, length), np.float32)
    for first in range(0, length, ATTENTION_TILE):
        keys = min(first + ATTENTION_TILE, length)
        tile, lse = np.zeros((keys - first, keys), np.float32), np.zeros(keys - first, np.float32)
        gemm(q[first:keys], k[:keys], tile, Op.N, Op.T, scale, 0.0)
        found[0, first:keys, :keys] = tile
        softmax_rows(tile, lse, keys - first, keys)
        found[1, first:keys, :keys] = tile
    return HeadScores(np.tril(found[0]), found[1])


def _heads_scores(qkv: Floats, heads: int) -> tuple[HeadScores, ...]:
    q, k, _ = np.split(qkv, 3, axis=1)
    return tuple(starmap(head_scores, zip(np.split(q, heads, axis=1), np.split(k, heads, axis=1), strict=True)))


@dataclass(frozen=True)
class KernelRun:
    """A forward pass in one precision."""

    precision: Precision
    layers: tuple[KernelLayer, ...]
    logits: Floats
    loss: float
    """Mean over the tokens, in nats."""


@dataclass(frozen=True)
class _Version:
    """Weights of some of the layers, with their packed weights. Implements `Version`."""

    weights: ModelWeights
    packed: Any


@contextmanager
def _settings(precision: Precision) -> Iterator[None]:
    """Use the matrix multiply of a precision, with one BLAS thread, while the context is open."""
    with float32_settings():
        if precision is Precision.BF16X3:
            with gemm_backend(GemmBackend.BF16X3):
                yield
        else:
            yield


def _layer_of(weights: ModelWeights, unstacked: frozenset[str], layer: int) -> ModelWeights:
    """Return the weights of a model of one of the layers."""
    fields = weights._asdict().items()
    kind: Any = type(weights)
    one: ModelWeights = kind(**{name: t if name in unstacked else t[layer : layer + 1] for name, t in fields})
    return one


def run_kernels(precision: Precision, geometry: Geometry, weights: ModelWeights, ids: NDArray[np.int32]) -> KernelRun:
    """Run the forward pass of T tokens `ids` (T + 1,), each of which predicts the next one."""
    length = len(ids) - 1
    one, unstacked = replace(geometry, layers=1, context=length), frozenset(architecture_of(geometry).unstacked)
    layers = []
    with _settings(precision):
        compute = compute_for(precision, one, 1)
        slot, packed = compute.memory.allocate_evaluation_slot(), compute.memory.allocate_packed()
        slot.ids[:], slot.targets[:] = ids[:-1], ids[1:]
        acts = slot.activations
        stacked = [name for name in weights._fields if name not in unstacked]
        for n in range(geometry.layers):
            version = _Version(_layer_of(weights, unstacked, n), packed)
            compute.pack_from_master(version, None if n == 0 else stacked)
            if n == 0:
                compute.embed(version, slot)
            elif acts.x.ndim == 3:  # float32 writes the output next to the input
                acts.x[0] = acts.x[1]
            compute.forward(version, slot)
            x = acts.x[1] if acts.x.ndim == 3 else acts.x
            qkv = _float32(acts.qkv[0])
            heads = None if precision is Precision.BF16 else _heads_scores(qkv, geometry.heads)
            layers.append(KernelLayer(qkv, _float32(acts.attn[0]), x.copy(), heads))
        logits = Arena({"logits": (length, geometry.vocabulary)})["logits"]
        loss = compute.loss(version, slot, logits) / length
    return KernelRun(precision, tuple(layers), logits, loss)


def _float32(stored: NDArray[Any]) -> Floats:
    """Return a copy of an array of activations as float32."""
    if stored.dtype == np.uint16:
        return np.array(upcast_bf16(stored))
    return stored.view(np.float16).astype(np.float32) if stored.dtype == np.int16 else stored.copy()
