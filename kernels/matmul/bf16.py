"""bfloat16 matrix products with float32 accumulators, used by linear layers, attention and the vocabulary projection.

The first operand is row-major, the second packed (`kernels.matmul.pack`); neither is copied. The result is float32,
written or accumulated, or bfloat16: then the bias is added before the one rounding, and optionally the GELU applied. A
linear layer needs three products::

    forward          y  = x @ W       a = x            b = pack(W)                once per update
    input gradient   dx = dy @ W.T    a = dy           b = pack(W, Op.T)          once per update
    weight gradient  dW += x.T @ dy   a = transpose(x) b = dy, packed on the fly  once per micro-batch

Each result may be the sum of two products, ``a @ b + a2 @ b2``: of a weight, and of an adapter of LoRA beside it. They
are summed in float32 and rounded once. `kernels.matmul.bf16_kernel` describes the blocking, which follows from the
shapes alone: the bits are the same in any thread.

Accumulators are float32, summed in the order of k: the error of an element is at most about ``K * 2**-23 * |a| @ |b|``,
and much less on average. The instructions treat subnormal inputs (below 1.2e-38) as zero.
"""

import numpy as np

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul.bf16_kernel import ENTRY, Bf16GemmArgs, Epilogue
from threadloom.kernels.matmul.operands import address_of, matrix_ref
from threadloom.kernels.matmul.pack import PackedBits, unpack_bf16
from threadloom.kernels.simd import (
    GELU_CUBIC,
    GELU_LINEAR,
    BF16Bits,
    read_dot_path,
    round_to_bf16,
    upcast_bf16,
)

_call = ENTRY.call

_Second = tuple[BF16Bits, PackedBits | BF16Bits, int]
"""Operands a2 and b2 of the second product and its K; with K = 0 there is none, and the operands are not read."""


def prepare_bf16() -> None:
    """Compile the product or load it from the cache; must be called before any kernel that multiplies bfloat16."""
    ENTRY.prepare()


@jit_strict_inline
def _start(
    a: BF16Bits,
    b: PackedBits | BF16Bits,
    packed: bool,
    second: _Second,
    out: Floats | BF16Bits,
    epilogue: Epilogue,
    bias: Floats,
    pre_gelu: BF16Bits,
) -> None:
    """Call the product on arrays. `bias` may be empty; only `Epilogue.GELU` writes `pre_gelu`."""
    rows, columns = out.shape
    bias_address = address_of(bias) if bias.shape[0] else 0
    a2, b2, inner2 = second
    _call(
        Bf16GemmArgs(
            matrix_ref(a), matrix_ref(b), packed, matrix_ref(a2), matrix_ref(b2), inner2, matrix_ref(out),
            rows, columns, a.shape[1], epilogue, bias_address, matrix_ref(pre_gelu), read_dot_path(),
        )
    )  # fmt: skip


@jit_strict_inline
def _sum_epilogue(accumulate: bool) -> Epilogue:
    return Epilogue.ADD if accumulate else Epilogue.WRITE


@jit_strict_fp
def _gemm_compiled(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    _start(a, b, True, (a, b, 0), out, _sum_epilogue(accumulate), out[0, :0], a)


@jit_strict_fp
def _gemm_rows_compiled(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    _start(a, b, False, (a, b, 0), out, _sum_epilogue(accumulate), out[0, :0], a)


@jit_strict_fp
def _gemm_sum_compiled(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, out: Floats, accumulate: bool) -> None:
    _start(a, b, True, (a2, b2, a2.shape[1]), out, _sum_epilogue(accumulate), out[0, :0], a)


@jit_strict_fp
def _linear_compiled(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, out: BF16Bits) -> None:
    _start(a, b, True, (a2, b2, a2.shape[1]), out, Epilogue.ROUND, bias, out)


@jit_strict_fp
def _linear_gelu_compiled(
    a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, pre_gelu: BF16Bits, out: BF16Bits
) -> None:
    _start(a, b, True, (a2, b2, a2.shape[1]), out, Epilogue.GELU, bias, pre_gelu)


def _multiply_numpy(a: BF16Bits, b: PackedBits, columns: int) -> Floats:
    return np.matmul(upcast_bf16(a), upcast_bf16(unpack_bf16(b, a.shape[1], columns)))


def _sums_numpy(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, columns: int) -> Floats:
    sums = _multiply_numpy(a, b, columns)
    return sums + _multiply_numpy(a2, b2, columns) if a2.shape[1] else sums


def _gemm_numpy(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    _gemm_sum_numpy(a, b, a[:, :0], b, out, accumulate)


def _gemm_sum_numpy(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, out: Floats, accumulate: bool) -> None:
    product = _sums_numpy(a, b, a2, b2, out.shape[1])
    out[...] = out + product if accumulate else product


def _gemm_rows_numpy(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    product = np.matmul(upcast_bf16(a), upcast_bf16(b))
    out[...] = out + product if accumulate else product


def _linear_numpy(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, out: BF16Bits) -> None:
    sums = _sums_numpy(a, b, a2, b2, out.shape[1])
    out[...] = round_to_bf16(sums + bias if bias.size else sums)


def _linear_gelu_numpy(
    a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, pre_gelu: BF16Bits, out: BF16Bits
) -> None:
    _linear_numpy(a, b, a2, b2, bias, pre_gelu)
    v = upcast_bf16(pre_gelu)
    with np.errstate(over="ignore"):
        out[...] = round_to_bf16(v / (1 + np.exp(-v * (GELU_LINEAR + GELU_CUBIC * v * v))))


if JIT_ENABLED:
    _gemm, _gemm_sum, _gemm_rows = _gemm_compiled, _gemm_sum_compiled, _gemm_rows_compiled
    _linear, _linear_gelu = _linear_compiled, _linear_gelu_compiled
else:
    _gemm, _gemm_sum, _gemm_rows = _gemm_numpy, _gemm_sum_numpy, _gemm_rows_numpy
    _linear, _linear_gelu = _linear_numpy, _linear_gelu_numpy


@jit_strict_fp
def gemm_bf16(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    """Write ``a @ B`` to `out`, or add it if `accumulate`: a (M, K), `b` the packed B (K, N), out (M, N).

    K is at least 1. Elements are contiguous within the rows of `a` and `out`; the rows need not be. Without
    `accumulate` the earlier content of `out` does not matter. `out` must not overlap `a` or `b`. `prepare_bf16` must
    have been called in this process.
    """
    _gemm(a, b, out, accumulate)


@jit_strict_fp
def gemm_rows_bf16(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    """Write ``a @ b`` to `out`, or add it if `accumulate`, with `b` (K, N) row-major: it is packed panel by panel.

    For operands that are used once, as in the gradient of a weight: a is the transposed x, b is dy.
    """
    _gemm_rows(a, b, out, accumulate)


@jit_strict_fp
def gemm_sum_bf16(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, out: Floats, accumulate: bool) -> None:
    """Write ``a @ B + a2 @ B2`` to `out`, or add it if `accumulate`; arrays as in `gemm_bf16`.

    a2 is (M, K2), `b2` the packed B2 (K2, N). With K2 = 0 the result has the bits of `gemm_bf16`, and `b2` is not read.
    """
    _gemm_sum(a, b, a2, b2, out, accumulate)


@jit_strict_fp
def linear_bf16(a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, out: BF16Bits) -> None:
    """Write ``a @ B + a2 @ B2 + bias``, rounded once, to `out` (M, N).

    Arrays as in `gemm_sum_bf16`; bias (N,), or (0,) for none.
    """
    _linear(a, b, a2, b2, bias, out)


@jit_strict_fp
def linear_gelu_bf16(
    a: BF16Bits, b: PackedBits, a2: BF16Bits, b2: PackedBits, bias: Floats, pre_gelu: BF16Bits, out: BF16Bits
) -> None:
    """Write ``a @ B + a2 @ B2 + bias`` to `pre_gelu` and its GELU to `out`, both (M, N) and rounded.

    The GELU is computed from the rounded numbers, so that backward, which has only those, recomputes it: up to the last
    rounding of float32, which occasionally changes the bfloat16 to its neighbour.
    """
    _linear_gelu(a, b, a2, b2, bias, pre_gelu, out)
