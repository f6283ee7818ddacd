"""Linear layers in 16 bits, with one name each for bfloat16 and float16.

The dtype of the weight's compute copy selects the arithmetic when a kernel is compiled: packed words (uint32) are
multiplied by `kernels.matmul.bf16`, float16 (int16) by `kernels.matmul.fp16`. So `kernels.bits16.gpt2` serves both
formats. Only float16 reads `upcast`, its scratch. A layer without bias has one of length 0. The gradient of a parameter
that is not trained is an array without elements, and is not computed. A product can add a second one to its sums, that
of the layer's adapter (`kernels.bits16.lora`).
"""

from typing import Any

import numpy as np
from numba import types

from threadloom.kernels.bits16.gelu import gelu_forward
from threadloom.kernels.bits16.tensors import (
    Fp16UpcastScratch,
    PackedPair,
    PackedWeight,
    SecondProduct,
    ThreadScratch,
)
from threadloom.kernels.common import Part
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel, jit_strict_fp, overload_inline
from threadloom.kernels.matmul import (
    PANEL,
    Fp16Operands,
    Op,
    gemm_bf16,
    gemm_fp16,
    gemm_rows_bf16,
    gemm_sum_bf16,
    linear_bf16,
    linear_fp16,
    linear_gelu_bf16,
    transpose_bf16,
    transpose_packed,
)
from threadloom.kernels.simd import Bits16, load16


def linear_forward(
    x: Bits16, weight: PackedWeight, second: SecondProduct, bias: Floats, out: Bits16, upcast: Fp16UpcastScratch
) -> None:
    """Write ``x @ W + bias``, and the second product, rounded once, to `out`: x (R, I), W (I, O), out (R, O).

    bias is (O,), or (0,) for none.
    """
    (_forward_fp16 if weight.dtype == np.int16 else _forward_bf16)(x, weight, second, bias, out, upcast)


@overload_inline(linear_forward)
def _forward(x: Any, weight: Any, second: Any, bias: Any, out: Any, upcast: Any) -> Any:
    return _forward_fp16 if weight.dtype == types.int16 else _forward_bf16


def _forward_bf16(x: Any, weight: Any, second: Any, bias: Any, out: Any, upcast: Any) -> None:
    linear_bf16(x, weight, second.x, second.weight, bias, out)


def _forward_fp16(x: Any, weight: Any, second: Any, bias: Any, out: Any, upcast: Any) -> None:
    operands, added = Fp16Operands(x, weight, Op.N), Fp16Operands(second.x, second.weight, Op.N)
    linear_fp16(operands, added, bias, out, upcast.sums, upcast.a, upcast.b)


def linear_gelu_forward(
    x: Bits16,
    weight: PackedWeight,
    second: SecondProduct,
    bias: Floats,
    before: Bits16,
    out: Bits16,
    upcast: Fp16UpcastScratch,
) -> None:
    """Write the result of `linear_forward` to `before` and its GELU to `out`, both (R, O) and rounded."""
    (_gelu_fp16 if weight.dtype == np.int16 else _gelu_bf16)(x, weight, second, bias, before, out, upcast)


@overload_inline(linear_gelu_forward)
def _gelu(x: Any, weight: Any, second: Any, bias: Any, before: Any, out: Any, upcast: Any) -> Any:
    return _gelu_fp16 if weight.dtype == types.int16 else _gelu_bf16


def _gelu_bf16(x: Any, weight: Any, second: Any, bias: Any, before: Any, out: Any, upcast: Any) -> None:
    linear_gelu_bf16(x, weight, second.x, second.weight, bias, before, out)


def _gelu_fp16(x: Any, weight: Any, second: Any, bias: Any, before: Any, out: Any, upcast: Any) -> None:
    linear_forward(x, weight, second, bias, before, upcast)
    gelu_forward(before, out)


def _gemm(a: Bits16, b: PackedWeight, out: Floats, op_b: Op, accumulate: bool, upcast: Fp16UpcastScratch) -> None:
    """Write, or add when `accumulate`, ``a @ op_b(b)`` to the float32 `out`; a packed `b` has its layout already."""
    (_gemm_fp16 if b.dtype == np.int16 else _gemm_bf16)(a, b, out, op_b, accumulate, upcast)


@overload_inline(_gemm)
def _gemm_of_format(a: Any, b: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> Any:
    return _gemm_fp16 if b.dtype == types.int16 else _gemm_bf16


def _gemm_bf16(a: Any, b: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> None:
    gemm_bf16(a, b, out, accumulate)


def _gemm_fp16(a: Any, b: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> None:
    gemm_fp16(a, b, out, Op.N, op_b, accumulate, upcast.a, upcast.b)


def _gemm_sum(
    a: Bits16,
    b: PackedWeight,
    second: SecondProduct,
    out: Floats,
    op_b: Op,
    accumulate: bool,
    upcast: Fp16UpcastScratch,
) -> None:
    """Compute `_gemm` and add the second product."""
    (_gemm_sum_fp16 if b.dtype == np.int16 else _gemm_sum_bf16)(a, b, second, out, op_b, accumulate, upcast)


@overload_inline(_gemm_sum)
def _gemm_sum_of_format(a: Any, b: Any, second: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> Any:
    return _gemm_sum_fp16 if b.dtype == types.int16 else _gemm_sum_bf16


def _gemm_sum_bf16(a: Any, b: Any, second: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> None:
    gemm_sum_bf16(a, b, second.x, second.weight, out, accumulate)


def _gemm_sum_fp16(a: Any, b: Any, second: Any, out: Any, op_b: Any, accumulate: Any, upcast: Any) -> None:
    gemm_fp16(a, b, out, Op.N, op_b, accumulate, upcast.a, upcast.b)
    if second.x.shape[1] > 0:
        gemm_fp16(second.x, second.weight, out, Op.N, Op.N, True, upcast.a, upcast.b)


@jit_inline_body
def linear_residual_forward(
    x: Bits16, weight: PackedWeight, second: SecondProduct, residual: Floats, upcast: Fp16UpcastScratch
) -> None:
    """Add ``x @ W``, and the second product, to the float32 `residual` (R, O).

    The bias has been added to it already (`layernorm_forward`).
    """
    _gemm_sum(x, weight, second, residual, Op.N, True, upcast)


def _input(
    d_out: Bits16,
    weight_t: PackedWeight,
    second: SecondProduct,
    dx: Floats | Bits16,
    accumulate: bool,
    upcast: Fp16UpcastScratch,
) -> None:
    """Compute `linear_backward_input`, given the packed transpose."""
    if dx.dtype == np.float32:
        _input_float32(d_out, weight_t, second, dx, accumulate, upcast)
    else:
        (_input_fp16 if weight_t.dtype == np.int16 else _input_bf16)(d_out, weight_t, second, dx, accumulate, upcast)


@overload_inline(_input)
def _input_of_format(d_out: Any, weight_t: Any, second: Any, dx: Any, accumulate: Any, upcast: Any) -> Any:
    if dx.dtype == types.float32:
        return _input_float32
    return _input_fp16 if weight_t.dtype == types.int16 else _input_bf16


def _input_float32(d_out: Any, weight_t: Any, second: Any, dx: Any, accumulate: Any, upcast: Any) -> None:
    _gemm_sum(d_out, weight_t, second, dx, Op.T, accumulate, upcast)


def _input_bf16(d_out: Any, weight_t: Any, second: Any, dx: Any, accumulate: Any, upcast: Any) -> None:
    linear_bf16(d_out, weight_t, second.x, second.weight, upcast.a[:0], dx)


def _input_fp16(d_out: Any, weight_t: Any, second: Any, dx: Any, accumulate: Any, upcast: Any) -> None:
    operands, added = Fp16Operands(d_out, weight_t, Op.T), Fp16Operands(second.x, second.weight, Op.N)
    linear_fp16(operands, added, upcast.a[:0], dx, upcast.sums, upcast.a, upcast.b)


def linear_backward_input(
    d_out: Bits16,
    weight: PackedPair,
    second: SecondProduct,
    dx: Floats | Bits16,
    accumulate: bool,
    thread: ThreadScratch,
) -> None:
    """Write the gradient of the input, ``d_out @ W.T``, and the second product, to `dx` (R, I).

    It is float32, to which the products are added when `accumulate`, or 16 bits, rounded once. If the packed transpose
    of a bfloat16 `weight` is not held, it is made in parts, in ``thread.packed_t``. The result has the same bits.
    """
    fp16 = weight.packed.dtype == np.int16
    (_backward_input_fp16 if fp16 else _backward_input_bf16)(d_out, weight, second, dx, accumulate, thread)


@overload_inline(linear_backward_input)
def _backward_input(d_out: Any, weight: Any, second: Any, dx: Any, accumulate: Any, thread: Any) -> Any:
    return _backward_input_fp16 if weight.types[0].dtype == types.int16 else _backward_input_bf16


def _backward_input_fp16(d_out: Any, weight: Any, second: Any, dx: Any, accumulate: Any, thread: Any) -> None:
    _input(d_out, weight.packed_t, second, dx, accumulate, thread.upcast)


def _backward_input_bf16(d_out: Any, weight: Any, second: Any, dx: Any, accumulate: Any, thread: Any) -> None:
    if weight.packed_t.shape[0] > 0:
        _input(d_out, weight.packed_t, second, dx, accumulate, thread.upcast)
    else:
        _input_by_parts(d_out, weight.packed, second, dx, accumulate, thread)


@jit_strict_fp
def _input_by_parts(
    d_out: Bits16,
    packed: PackedWeight,
    second: SecondProduct,
    dx: Floats | Bits16,
    accumulate: bool,
    thread: ThreadScratch,
) -> None:
    """Compute `linear_backward_input` with some panels of the packed transpose at a time, while they are in cache."""
    panels, pairs = 2 * packed.shape[1] // PANEL, packed.shape[0] * PANEL // 2
    step = thread.packed_t.shape[0] // (pairs * PANEL)
    for first in range(0, panels, step):
        last = min(first + step, panels)
        part = thread.packed_t[: (last - first) * pairs * PANEL].reshape((last - first, pairs, PANEL))
        transpose_packed(packed, first, part)
        added = SecondProduct(second.x, second.weight[first:last])
        columns = dx[:, first * PANEL : min(last * PANEL, dx.shape[1])]
        _input(d_out, part, added, columns, accumulate, thread.upcast)


def linear_backward_weight(
    x_t: Bits16, d_out: Bits16, d_weight: Floats, accumulate: bool, upcast: Fp16UpcastScratch
) -> None:
    """Write, or add when `accumulate`, the gradient of the weight, ``x.T @ d_out``, to the float32 `d_weight` (I, O).

    `x_t` (I, R) is the transposed input, d_out (R, O).
    """
    (_weight_fp16 if d_out.dtype == np.int16 else _weight_bf16)(x_t, d_out, d_weight, accumulate, upcast)


@overload_inline(linear_backward_weight)
def _weight(x_t: Any, d_out: Any, d_weight: Any, accumulate: Any, upcast: Any) -> Any:
    return _weight_fp16 if d_out.dtype == types.int16 else _weight_bf16


def _weight_bf16(x_t: Any, d_out: Any, d_weight: Any, accumulate: Any, upcast: Any) -> None:
    if d_weight.size:
        gemm_rows_bf16(x_t, d_out, d_weight, accumulate)


def _weight_fp16(x_t: Any, d_out: Any, d_weight: Any, accumulate: Any, upcast: Any) -> None:
    if d_weight.size:
        gemm_fp16(x_t, d_out, d_weight, Op.N, Op.N, accumulate, upcast.a, upcast.b)


@jit_inline_body
def transpose_backward_weight(
    x: Bits16, d_out: Bits16, d_weight: Floats, accumulate: bool, transposed: Bits16, upcast: Fp16UpcastScratch
) -> None:
    """Compute `linear_backward_weight` from `x` (R, I), of which it writes the transpose to `transposed` (>= I, R)."""
    if d_weight.size:
        x_t = transposed[: x.shape[1]]
        transpose_bf16(x, x_t)
        linear_backward_weight(x_t, d_out, d_weight, accumulate, upcast)


@jit_inline_body
def linear_backward_bias(d_out: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the gradient of the bias, the sum of the rows of `d_out`, to `d_bias` (O,)."""
    linear_backward_bias_columns(d_out, Part(0, d_bias.shape[0]), d_bias, accumulate)


@jit_kernel
def linear_backward_bias_columns(d_out: Bits16, columns: Part, d_bias: Floats, accumulate: bool) -> None:
    """Compute some columns of `linear_backward_bias`."""
    first, last = columns
    target = d_bias[first:last]
    if not accumulate:
        target.fill(0.0)
    four = d_out.shape[0] - d_out.shape[0] % 4
    for r in range(0, four, 4):
        a, b = d_out[r][first:last], d_out[r + 1][first:last]
        c, d = d_out[r + 2][first:last], d_out[r + 3][first:last]
        for j in range(target.shape[0]):
            target[j] += (load16(a, j) + load16(b, j)) + (load16(c, j) + load16(d, j))
    for r in range(four, d_out.shape[0]):
        row = d_out[r][first:last]
        for j in range(target.shape[0]):
            target[j] += load16(row, j)


@jit_inline_body
def product(a: Bits16, weight: PackedWeight, out: Floats, upcast: Fp16UpcastScratch) -> None:
    """Write ``a @ W`` to the float32 `out`."""
    _gemm(a, weight, out, Op.N, False, upcast)


@jit_inline_body
def product_with_transpose(a: Bits16, weight_t: PackedWeight, out: Floats, upcast: Fp16UpcastScratch) -> None:
    """Write ``a @ W.T`` to the float32 `out`; `weight_t` is the packed transpose of W."""
    _gemm(a, weight_t, out, Op.T, False, upcast)


@jit_inline_body
def logits_forward(h: Bits16, wte_t: PackedWeight, logits: Floats, upcast: Fp16UpcastScratch) -> None:
    """Write ``h @ wte.T``, the projection tied to the token embedding (V, C), to `logits` (rows, V): h (rows, C)."""
    product_with_transpose(h, wte_t, logits, upcast)


@jit_inline_body
def logits_backward_input(d_logits: Bits16, wte: PackedWeight, dh: Floats, upcast: Fp16UpcastScratch) -> None:
    """Write ``d_logits @ wte``, the gradient of the input of `logits_forward`, to the float32 `dh` (rows, C)."""
    product(d_logits, wte, dh, upcast)
