"""Arguments that the matrix products share: operands by address, transposes, and the arguments of one float32 GEMM."""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import Floats, jit_strict_inline
from threadloom.kernels.simd import FP16Bits

Operand = Floats | FP16Bits
"""Matrix of a product with a float32 result: itself float32 or, in `kernels.matmul.fp16`, float16."""


class Op(IntEnum):
    """Operation on a stored matrix before a product, as in BLAS.

    Compiled code passes it for free; from Python, Numba needs some microseconds to unbox an enum.
    """

    N = 0  # as it is stored
    T = 1  # transposed


class MatrixRef(NamedTuple):
    """Matrix in memory, whose elements are contiguous within a row."""

    address: int
    stride: int  # bytes from row to row


class GemmArgs(NamedTuple):
    """Arguments of ``out = alpha * op_a(a) @ op_b(b) + beta * out`` in float32; with ``beta == 0`` out is not read."""

    a: MatrixRef  # op_a(a) is (rows, inner)
    op_a: Op
    b: MatrixRef  # op_b(b) is (inner, columns)
    op_b: Op
    out: MatrixRef  # (rows, columns)
    rows: int
    columns: int
    inner: int
    alpha: np.float32
    beta: np.float32


@jit_strict_inline
def address_of(array: NDArray[Any]) -> int:
    """Return the address of the first element."""
    return np.intp(array.ctypes.data)  # type: ignore[return-value]  # Numba types addresses unsigned


@jit_strict_inline
def matrix_ref(array: NDArray[Any]) -> MatrixRef:
    """Return a reference to a two-dimensional array."""
    return MatrixRef(address_of(array), array.strides[0])


@jit_strict_inline
def gemm_args(a: Operand, b: Operand, out: Floats, op_a: Op, op_b: Op, alpha: float, beta: float) -> GemmArgs:
    """Return the arguments of a product of arrays."""
    rows, columns = out.shape
    inner = a.shape[0] if op_a == Op.T else a.shape[1]
    scales = np.float32(alpha), np.float32(beta)
    return GemmArgs(matrix_ref(a), op_a, matrix_ref(b), op_b, matrix_ref(out), rows, columns, inner, *scales)


@jit_strict_inline
def shifted(matrix: MatrixRef, row: int, offset: int) -> MatrixRef:
    """Return the part of a matrix that starts `row` rows and `offset` bytes further on."""
    return MatrixRef(matrix.address + row * matrix.stride + offset, matrix.stride)
