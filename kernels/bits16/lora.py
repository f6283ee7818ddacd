"""Low-rank adapters of linear layers in 16 bits: ``y += scale * (x @ a.T) @ b`` (LoRA, Hu et al., 2021, section 4.1).

The product with `b` is added to the float32 sums of the layer's own product, before these are rounded; likewise that
with `a` in the backward pass. The inner results, ``scale * x @ a.T`` and the gradient of ``x @ a.T``, are rounded once,
after they are scaled. `kernels.common.LoraAdapter` has the shapes. A layer without adapter has arrays without elements,
for which nothing is computed: the results are the bits of `kernels.bits16.linear`.

With dropout, the adapter reads a copy of the layer's input, rounded. The gradient of the copy is masked in float32, and
the product of the layer is added to it before the one rounding.

What only adapters need is behind addresses and compiled when a run has adapters: the other kernels contain no more of
it than calls.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from threadloom.kernels.bits16.linear import (
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
    product,
    product_with_transpose,
)
from threadloom.kernels.bits16.tensors import (
    AdaptedWeight,
    Fp16UpcastScratch,
    PackedPair,
    PackedWeight,
    SecondProduct,
    ThreadScratch,
    thread_example,
)
from threadloom.kernels.common import (
    NO_DROPOUT,
    Dropout,
    LoraAdapter,
    LoraConstants,
    LoraSite,
    dropout_forward,
    dropout_of,
    drops,
)
from threadloom.kernels.compiling import Entry, Floats, jit_inline_body, jit_kernel, type_of
from threadloom.kernels.matmul import transpose_bf16
from threadloom.kernels.simd import Bits16, store16, store_element


class LoraInput(NamedTuple):
    """The factor of an adapter's product, and the dropout of its input."""

    scale: float
    dropout: Dropout
    buffer: Bits16  # (at least R * I,) for the input with dropped elements; (0,) without dropout


@jit_inline_body
def lora_input(
    constants: LoraConstants, key: NDArray[np.uint64], layer: int, site: LoraSite, buffer: Bits16
) -> LoraInput:
    """Return those of the adapters of a matrix."""
    return LoraInput(constants.scale, dropout_of(constants, key, layer, site), buffer)


@jit_kernel
def _dropped(x: Bits16, given: LoraInput) -> Bits16:
    """Return the input of the adapter: `x` (R, I) itself without dropout."""
    if not drops(given.dropout):
        return x
    found = given.buffer[: x.size].reshape(x.shape)
    dropout_forward(x, given.dropout, found)
    return found


@jit_kernel
def _scale_and_round(sums: Floats, scale: float, out: Bits16) -> None:
    factor = np.float32(scale)
    for r in range(out.shape[0]):
        row, target = sums[r], out[r]
        for j in range(row.shape[0]):
            store16(target, j, factor * row[j])


class _ProductArgs(NamedTuple):
    """An adapter's first product: ``scale * x @ matrix.T``, rounded once, with elements of `x` (R, I) dropped."""

    x: Bits16
    matrix_t: PackedWeight
    given: LoraInput
    out: Bits16  # (R, P')
    sums: Floats
    upcast: Fp16UpcastScratch


@jit_kernel
def _product(p: _ProductArgs) -> None:
    sums = p.sums[: p.out.size].reshape(p.out.shape)
    product_with_transpose(_dropped(p.x, p.given), p.matrix_t, sums, p.upcast)
    _scale_and_round(sums, p.given.scale, p.out)


class LoraBackward(NamedTuple):
    """Arrays and numbers of the backward pass of an adapter, in addition to its compute copies."""

    grads: LoraAdapter
    xa: Bits16  # (R, P') from the forward pass
    d_xa: Bits16  # (at least R * P',) scratch, written by `adapted_backward_input`
    xa_t: Bits16  # (at least P' * R,) scratch
    d_dropped: Floats  # (at least R * I,) scratch for the gradient of the input with dropout; (0,) without
    columns: NDArray[np.int64]  # (adapters, 2) range of columns of each adapter
    given: LoraInput  # with the key of the forward pass


@jit_inline_body
def _d_xa(lora: LoraBackward) -> Bits16:
    """Return the used part of the scratch, (R, P')."""
    return lora.d_xa[: lora.xa.size].reshape(lora.xa.shape)


class _DroppedArgs(NamedTuple):
    """The gradient of the input of a layer whose adapter has dropout, given that of ``x @ a.T``, in ``lora.d_xa``."""

    d_out: Bits16
    layer: AdaptedWeight
    lora: LoraBackward
    sums: Floats  # (R, I), written
    thread: ThreadScratch


@jit_kernel
def _dropped_input(p: _DroppedArgs) -> None:
    layer, nothing = p.layer, p.lora.d_xa[:0].reshape((0, 0))
    product(_d_xa(p.lora), layer.a.packed, p.sums, p.thread.upcast)
    dropout_forward(p.sums, p.lora.given.dropout, p.sums)
    linear_backward_input(p.d_out, layer.weight, SecondProduct(nothing, layer.a.packed), p.sums, True, p.thread)


class _WeightArgs(NamedTuple):
    """Arguments of `lora_backward_weight`."""

    x: Bits16
    d_out: Bits16
    lora: LoraBackward
    accumulate: bool
    upcast: Fp16UpcastScratch


@jit_kernel
def _backward_weight(p: _WeightArgs) -> None:
    lora, grads, rows, width = p.lora, p.lora.grads, p.lora.xa.shape[0], p.lora.xa.shape[1]
    transposed = lora.xa_t[: rows * width].reshape((width, rows))
    if grads.a.size:
        transpose_bf16(_d_xa(lora), transposed)
        inputs = _dropped(p.x, lora.given)
        linear_backward_weight(transposed[: grads.a.shape[0]], inputs, grads.a, p.accumulate, p.upcast)
    if grads.b.size:
        transpose_bf16(lora.xa, transposed)
        rank = grads.b.shape[0] // lora.columns.shape[0]
        for i in range(lora.columns.shape[0]):
            block, first, last = slice(i * rank, (i + 1) * rank), lora.columns[i, 0], lora.columns[i, 1]
            linear_backward_weight(
                transposed[block], p.d_out[:, first:last], grads.b[block, first:last], p.accumulate, p.upcast
            )


class _Types(NamedTuple):
    """Types of the arguments for one 16-bit format."""

    product: Any
    dropped_input: Any
    backward_weight: Any


def _types_of(dtype: DTypeLike) -> _Types:
    bits, floats, buffer = np.zeros((1, 1), dtype), np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
    packed = np.zeros((1, 1), dtype) if np.dtype(dtype) == np.int16 else np.zeros((1, 1, 1), np.uint32)
    given, pair, thread = LoraInput(0.0, NO_DROPOUT, bits[0]), PackedPair(packed, packed), thread_example()
    grads, columns = LoraAdapter(floats, floats), np.zeros((1, 2), np.int64)
    lora = LoraBackward(grads, bits, bits[0], bits[0], buffer, columns, given)
    return _Types(
        type_of(_ProductArgs(bits, packed, given, bits, buffer, thread.upcast)),
        type_of(_DroppedArgs(bits, AdaptedWeight(pair, pair, pair), lora, floats, thread)),
        type_of(_WeightArgs(bits, bits, lora, accumulate=False, upcast=thread.upcast)),
    )


_TYPES: dict[Any, _Types] = {dtype: _types_of(dtype) for dtype in (np.uint16, np.int16)}
_PRODUCT = Entry("threadloom_lora16_product", _product, *(t.product for t in _TYPES.values()), prepares_itself=True)
_DROPPED_INPUT = Entry(
    "threadloom_lora16_dropped_input",
    _dropped_input,
    *(t.dropped_input for t in _TYPES.values()),
    prepares_itself=True,
)
_WEIGHT = Entry(
    "threadloom_lora16_backward_weight",
    _backward_weight,
    *(t.backward_weight for t in _TYPES.values()),
    prepares_itself=True,
)
_call_product, _call_dropped_input, _call_weight = _PRODUCT.call, _DROPPED_INPUT.call, _WEIGHT.call


def prepare_lora(dtype: DTypeLike) -> None:
    """Compile what adapters call in the format of a dtype, or load it from the cache.

    The first call does it otherwise.
    """
    kinds = _TYPES[np.dtype(dtype).type]
    _PRODUCT.prepare(kinds.product)
    _DROPPED_INPUT.prepare(kinds.dropped_input)
    _WEIGHT.prepare(kinds.backward_weight)


@jit_inline_body
def _adapter_forward(
    x: Bits16, layer: AdaptedWeight, given: LoraInput, xa: Bits16, thread: ThreadScratch
) -> SecondProduct:
    """Write ``scale * x @ a.T`` to `xa` (R, P'), and return its product with `b`, not computed: x (R, I)."""
    if xa.shape[1] > 0:
        _call_product(_ProductArgs(x, layer.a.packed_t, given, xa, thread.lora_sums, thread.upcast))
    return SecondProduct(xa, layer.b.packed)


@jit_kernel
def adapted_forward(
    x: Bits16, layer: AdaptedWeight, given: LoraInput, xa: Bits16, bias: Floats, out: Bits16, thread: ThreadScratch
) -> None:
    """Compute `linear_forward` of a layer with its adapter; `xa` (R, P') is kept for the backward pass."""
    second = _adapter_forward(x, layer, given, xa, thread)
    linear_forward(x, layer.weight.packed, second, bias, out, thread.upcast)


@jit_kernel
def adapted_gelu_forward(
    x: Bits16,
    layer: AdaptedWeight,
    given: LoraInput,
    xa: Bits16,
    bias: Floats,
    before: Bits16,
    out: Bits16,
    thread: ThreadScratch,
) -> None:
    """Compute `linear_gelu_forward` of a layer with its adapter."""
    second = _adapter_forward(x, layer, given, xa, thread)
    linear_gelu_forward(x, layer.weight.packed, second, bias, before, out, thread.upcast)


@jit_kernel
def adapted_residual_forward(
    x: Bits16, layer: AdaptedWeight, given: LoraInput, xa: Bits16, residual: Floats, thread: ThreadScratch
) -> None:
    """Compute `linear_residual_forward` of a layer with its adapter."""
    second = _adapter_forward(x, layer, given, xa, thread)
    linear_residual_forward(x, layer.weight.packed, second, residual, thread.upcast)


@jit_kernel
def adapted_backward_input(
    d_out: Bits16, layer: AdaptedWeight, lora: LoraBackward, dx: Floats | Bits16, thread: ThreadScratch
) -> None:
    """Compute `linear_backward_input` of a layer with its adapter: d_out (R, O), dx (R, I)."""
    d_xa, dropout = _d_xa(lora), lora.given.dropout
    if d_xa.shape[1] > 0:
        kept = LoraInput(lora.given.scale, Dropout(0.0, dropout.key, dropout.matrix), lora.given.buffer)
        _call_product(_ProductArgs(d_out, layer.b.packed_t, kept, d_xa, thread.lora_sums, thread.upcast))
    if d_xa.shape[1] > 0 and drops(dropout):
        sums = lora.d_dropped[: dx.size].reshape(dx.shape)
        _call_dropped_input(_DroppedArgs(d_out, layer, lora, sums, thread))
        for r in range(dx.shape[0]):
            row, target = sums[r], dx[r]
            for j in range(row.shape[0]):
                store_element(target, j, row[j])
    else:
        linear_backward_input(d_out, layer.weight, SecondProduct(d_xa, layer.a.packed), dx, False, thread)


@jit_kernel
def lora_backward_weight(x: Bits16, d_out: Bits16, lora: LoraBackward, accumulate: bool, thread: ThreadScratch) -> None:
    """Write, or add when `accumulate`, the gradients of both matrices, after `adapted_backward_input`: x (R, I).

    Elements of ``grads.b`` outside the blocks are neither read nor written.
    """
    if lora.grads.a.size or lora.grads.b.size:
        _call_weight(_WeightArgs(x, d_out, lora, accumulate, thread.upcast))
