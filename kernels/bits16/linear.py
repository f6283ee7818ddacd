"""The products of a linear layer in 16 bits, one name each for bfloat16 and float16.

Which arithmetic runs follows, when a kernel is compiled, from the type of the weight's form: packed words (uint32) are
multiplied by `kernels.matmul.bf16`, float16 (int16) by `kernels.matmul.fp16`. So `kernels.bits16.gpt2` serves
every format.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from threadloom.kernels.bits16.gelu import gelu_forward_low
from threadloom.kernels.bits16.tensors import Form, Wide
from threadloom.kernels.compiling import Floats
from threadloom.kernels.matmul import (
    Op,
    gemm_bf16,
    gemm_fp16,
    gemm_rows_bf16,
    linear_bf16,
    linear_fp16,
    linear_gelu_bf16,
)
from threadloom.kernels.simd import Bits16


def _rounded_packed(a: Any, form: Any, op: Any, bias: Any, out: Any, wide: Any) -> None:
    linear_bf16(a, form, bias, out)


def _rounded_half(a: Any, form: Any, op: Any, bias: Any, out: Any, wide: Any) -> None:
    linear_fp16(a, form, op, bias, out, wide.sums, wide.a, wide.b)


def _gelu_packed(a: Any, form: Any, bias: Any, before: Any, out: Any, wide: Any) -> None:
    linear_gelu_bf16(a, form, bias, before, out)


def _gelu_half(a: Any, form: Any, bias: Any, before: Any, out: Any, wide: Any) -> None:
    linear_fp16(a, form, Op.N, bias, before, wide.sums, wide.a, wide.b)
    gelu_forward_low(before, out)


def _float_packed(a: Any, form: Any, op: Any, out: Any, accumulate: Any, wide: Any) -> None:
    gemm_bf16(a, form, out, accumulate)


def _float_half(a: Any, form: Any, op: Any, out: Any, accumulate: Any, wide: Any) -> None:
    gemm_fp16(a, form, out, Op.N, op, accumulate, wide.a, wide.b)


def _outer_bf16(a_turned: Any, d: Any, out: Any, accumulate: Any, wide: Any) -> None:
    gemm_rows_bf16(a_turned, d, out, accumulate)


def _outer_half(a_turned: Any, d: Any, out: Any, accumulate: Any, wide: Any) -> None:
    gemm_fp16(a_turned, d, out, Op.N, Op.N, accumulate, wide.a, wide.b)


def product_rounded(a: Bits16, form: Form, op: Op, bias: Floats, out: Bits16, wide: Wide) -> None:
    """Write ``a @ W + bias``, rounded once, to `out`: a (M, K), out (M, N); bias (N,), or (0,) for none.

    `op` is T if `form` is stored as W's transpose; it matters only for float16, of which there is one array for both.
    """
    (_rounded_half if form.dtype == np.int16 else _rounded_packed)(a, form, op, bias, out, wide)


def product_gelu(a: Bits16, form: Form, bias: Floats, before: Bits16, out: Bits16, wide: Wide) -> None:
    """Write ``a @ W + bias`` to `before` and its GELU to `out`, both (M, N) and rounded."""
    (_gelu_half if form.dtype == np.int16 else _gelu_packed)(a, form, bias, before, out, wide)


def product_float(a: Bits16, form: Form, op: Op, out: Floats, accumulate: bool, wide: Wide) -> None:
    """Write, or add when `accumulate`, ``a @ W`` to the float32 `out` (M, N)."""
    (_float_half if form.dtype == np.int16 else _float_packed)(a, form, op, out, accumulate, wide)


def product_outer(a_turned: Bits16, d: Bits16, out: Floats, accumulate: bool, wide: Wide) -> None:
    """Write, or add, ``a.T @ d`` to the float32 `out` (I, O), the gradient of a weight: a_turned (I, R), d (R, O)."""
    (_outer_half if d.dtype == np.int16 else _outer_bf16)(a_turned, d, out, accumulate, wide)


@overload(product_rounded, inline="always")
def _rounded(a: Any, form: Any, op: Any, bias: Any, out: Any, wide: Any) -> Any:
    return _rounded_half if form.dtype == types.int16 else _rounded_packed


@overload(product_gelu, inline="always")
def _gelu(a: Any, form: Any, bias: Any, before: Any, out: Any, wide: Any) -> Any:
    return _gelu_half if form.dtype == types.int16 else _gelu_packed


@overload(product_float, inline="always")
def _float(a: Any, form: Any, op: Any, out: Any, accumulate: Any, wide: Any) -> Any:
    return _float_half if form.dtype == types.int16 else _float_packed


@overload(product_outer, inline="always")
def _outer(a_turned: Any, d: Any, out: Any, accumulate: Any, wide: Any) -> Any:
    return _outer_half if d.dtype == types.int16 else _outer_bf16
