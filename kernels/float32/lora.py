"""Low-rank adapters of linear layers in float32: ``y += scale * (x @ a.T) @ b`` (LoRA, Hu et al., 2021, section 4.1).

`LoraAdapter` has the shapes. A layer without adapter has arrays without elements, for which nothing is computed. So the
kernels are behind addresses and compiled when a run has adapters: the others contain no more of them than a call.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common import (
    NO_DROPOUT,
    Dropout,
    LoraAdapter,
    LoraConstants,
    LoraSite,
    dropout_backward,
    dropout_forward,
    dropout_of,
    drops,
)
from threadloom.kernels.compiling import Entry, Floats, jit_inline_body, jit_kernel, type_of
from threadloom.kernels.matmul import Op, gemm


class LoraInput(NamedTuple):
    """The factor of an adapter's product, and the dropout of its input."""

    scale: float
    dropout: Dropout
    buffer: Floats  # (at least R * I,) for the input with dropped elements, and for its gradient; (0,) without dropout


@jit_inline_body
def lora_input(
    constants: LoraConstants, key: NDArray[np.uint64], layer: int, site: LoraSite, buffer: Floats
) -> LoraInput:
    """Return those of the adapters of a matrix."""
    return LoraInput(constants.scale, dropout_of(constants, key, layer, site), buffer)


@jit_kernel
def _dropped(x: Floats, given: LoraInput) -> Floats:
    """Return the input of the adapter: `x` (R, I) itself without dropout."""
    if not drops(given.dropout):
        return x
    found = _first_elements(given.buffer, x.shape[0], x.shape[1])
    dropout_forward(x, given.dropout, found)
    return found


class _ForwardArgs(NamedTuple):
    """Arguments of `lora_forward`."""

    x: Floats
    adapter: LoraAdapter
    given: LoraInput
    xa: Floats
    out: Floats


@jit_kernel
def _forward(p: _ForwardArgs) -> None:
    gemm(_dropped(p.x, p.given), p.adapter.a, p.xa, Op.N, Op.T, p.given.scale, 0.0)
    gemm(p.xa, p.adapter.b, p.out, Op.N, Op.N, 1.0, 1.0)


class LoraBackward(NamedTuple):
    """What the backward pass of an adapter reads and writes."""

    weights: LoraAdapter
    grads: LoraAdapter
    xa: Floats  # (R, P) from `lora_forward`
    d_xa: Floats  # (at least R * P,) scratch, written by `lora_backward_input`
    columns: NDArray[np.int64]  # (adapters, 2) range of columns of each adapter
    given: LoraInput  # with the key of the forward pass


class _InputArgs(NamedTuple):
    """Arguments of `lora_backward_input`."""

    d_out: Floats
    lora: LoraBackward
    dx: Floats


@jit_kernel
def _backward_input(p: _InputArgs) -> None:
    lora, dx = p.lora, p.dx
    adapter, d_xa = lora.weights, _d_xa(lora)
    gemm(p.d_out, adapter.b, d_xa, Op.N, Op.T, lora.given.scale, 0.0)
    if drops(lora.given.dropout):
        d_dropped = _first_elements(lora.given.buffer, dx.shape[0], dx.shape[1])
        gemm(d_xa, adapter.a, d_dropped, Op.N, Op.N, 1.0, 0.0)
        dropout_backward(d_dropped, lora.given.dropout, dx)
    else:
        gemm(d_xa, adapter.a, dx, Op.N, Op.N, 1.0, 1.0)


class _WeightArgs(NamedTuple):
    """Arguments of `lora_backward_weight`."""

    x: Floats
    d_out: Floats
    lora: LoraBackward
    accumulate: bool


@jit_kernel
def _backward_weight(p: _WeightArgs) -> None:
    lora, grads, beta = p.lora, p.lora.grads, 1.0 if p.accumulate else 0.0
    if grads.a.size:
        gemm(_d_xa(lora), _dropped(p.x, lora.given), grads.a, Op.T, Op.N, 1.0, beta)
    if grads.b.size:
        rank = grads.b.shape[0] // lora.columns.shape[0]
        for i in range(lora.columns.shape[0]):
            rows, columns = slice(i * rank, (i + 1) * rank), slice(lora.columns[i, 0], lora.columns[i, 1])
            gemm(lora.xa[:, rows], p.d_out[:, columns], grads.b[rows, columns], Op.T, Op.N, 1.0, beta)


@jit_kernel
def _d_xa(lora: LoraBackward) -> Floats:
    """Return the used part of the scratch, (R, P)."""
    return _first_elements(lora.d_xa, lora.xa.shape[0], lora.xa.shape[1])


@jit_kernel
def _first_elements(buffer: Floats, rows: int, columns: int) -> Floats:
    """Return the first elements of a buffer as a matrix."""
    return buffer[: rows * columns].reshape((rows, columns))


_MATRIX, _BUFFER = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
_ADAPTER, _GIVEN = LoraAdapter(_MATRIX, _MATRIX), LoraInput(0.0, NO_DROPOUT, _BUFFER)
_BACKWARD = LoraBackward(_ADAPTER, _ADAPTER, _MATRIX, _BUFFER, np.zeros((1, 2), np.int64), _GIVEN)
_FORWARD = Entry(
    "threadloom_lora_forward",
    _forward,
    type_of(_ForwardArgs(_MATRIX, _ADAPTER, _GIVEN, _MATRIX, _MATRIX)),
    prepares_itself=True,
)
_INPUT = Entry(
    "threadloom_lora_backward_input",
    _backward_input,
    type_of(_InputArgs(_MATRIX, _BACKWARD, _MATRIX)),
    prepares_itself=True,
)
_WEIGHT = Entry(
    "threadloom_lora_backward_weight",
    _backward_weight,
    type_of(_WeightArgs(_MATRIX, _MATRIX, _BACKWARD, accumulate=False)),
    prepares_itself=True,
)
_call_forward, _call_input, _call_weight = _FORWARD.call, _INPUT.call, _WEIGHT.call


def prepare_lora() -> None:
    """Compile what adapters call, or load it from the cache. The first call does it otherwise."""
    for entry in (_FORWARD, _INPUT, _WEIGHT):
        entry.prepare()


@jit_kernel
def lora_forward(x: Floats, adapter: LoraAdapter, given: LoraInput, xa: Floats, out: Floats) -> None:
    """Write ``scale * x @ a.T`` to `xa` (R, P), and add ``xa @ b`` to `out` (R, O), the layer's output: x (R, I)."""
    if adapter.a.size:
        _call_forward(_ForwardArgs(x, adapter, given, xa, out))


@jit_kernel
def lora_backward_input(d_out: Floats, lora: LoraBackward, dx: Floats) -> None:
    """Add the gradient of the layer's input to `dx` (R, I), given that of its output, `d_out` (R, O)."""
    if lora.weights.a.size:
        _call_input(_InputArgs(d_out, lora, dx))


@jit_kernel
def lora_backward_weight(x: Floats, d_out: Floats, lora: LoraBackward, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the gradients of both matrices, after `lora_backward_input`: x (R, I).

    Elements of ``grads.b`` outside the blocks are neither read nor written.
    """
    if lora.grads.a.size or lora.grads.b.size:
        _call_weight(_WeightArgs(x, d_out, lora, accumulate))
