"""The GEMM whose speed is measured, in each precision, with operands as training has them."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Op, gemm
from threadloom.kernels.matmul import (
    fp16_scratch_sizes,
    gemm_bf16,
    gemm_fp16,
    gemm_split,
    pack_float32,
    packed_shape,
    prepare_bf16,
    prepare_split,
)
from threadloom.kernels.simd import bf16_from_float32, fp16_from_float32
from threadloom.stages.config import Precision

ROWS, INNER, COLUMNS = 256, 384, 1536
"""Sizes of the GEMM: the rows of a micro-batch through the first half of an MLP with 384 channels."""
OPERATIONS = 2.0 * ROWS * INNER * COLUMNS
"""Floating-point operations of one call."""

Call = Callable[[], object]


def _operands() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(shape, dtype=np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    return a, b, np.zeros((ROWS, COLUMNS), np.float32)


def _float32_gemm() -> Call:
    a, b, out = _operands()
    return lambda: gemm(a, b, out, Op.N, Op.N, 1.0, 0.0)


def _bf16_gemm() -> Call:
    """Return the GEMM alone: activations are already bfloat16, and weights are packed once per update."""
    prepare_bf16()
    a, b, out = _operands()
    bits, packed = np.empty(a.shape, np.uint16), np.empty(packed_shape(INNER, COLUMNS), np.uint32)
    bf16_from_float32(a.reshape(-1), bits.reshape(-1))
    pack_float32(b, Op.N, packed)
    return lambda: gemm_bf16(bits, packed, out, False)


def _bf16x3_gemm() -> Call:
    """Return the GEMM that splits two float32 operands, without changing the backend of the process."""
    a, b, out = _operands()
    prepare_split()
    return lambda: gemm_split(a, b, out, Op.N, Op.N, 1.0, 0.0)


def _fp16_gemm() -> Call:
    """Return the GEMM that upcasts two float16 operands block by block and multiplies in float32."""
    a, b, out = _operands()
    halves = [np.empty(operand.shape, np.int16) for operand in (a, b)]
    for operand, bits in zip((a, b), halves, strict=True):
        fp16_from_float32(operand.reshape(-1), bits.reshape(-1))
    scratch = [np.empty(size, np.float32) for size in fp16_scratch_sizes(ROWS, COLUMNS, INNER)]
    return lambda: gemm_fp16(halves[0], halves[1], out, Op.N, Op.N, False, scratch[0], scratch[1])


PRODUCTS: Mapping[Precision, Callable[[], Call]] = {
    Precision.FLOAT32: _float32_gemm,
    Precision.BF16: _bf16_gemm,
    Precision.BF16X3: _bf16x3_gemm,
    Precision.FP16: _fp16_gemm,
}
"""Precision → factory of a call that does `OPERATIONS` and releases the GIL. Compiled code only."""
