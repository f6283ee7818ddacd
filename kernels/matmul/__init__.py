"""Matrix products: BLAS, Numba float32, packed bfloat16 (AVX-512, AMX), float16, and bf16x3, and the choice among them.

May import: compiling, simd, common.
"""

from threadloom.kernels.matmul.amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from threadloom.kernels.matmul.backend import BlasInfo, GemmBackend, blas_info, gemm, gemm_backend
from threadloom.kernels.matmul.bf16 import gemm_bf16, gemm_rows_bf16, linear_bf16, linear_gelu_bf16, prepare_bf16
from threadloom.kernels.matmul.fp16 import fp16_scratch_sizes, fp16_sums_size, gemm_fp16, linear_fp16
from threadloom.kernels.matmul.operands import MatrixRef, Op, address_of, matrix_ref, shifted
from threadloom.kernels.matmul.pack import (
    PANEL,
    PackedBits,
    pack_bf16,
    pack_float32,
    pack_pair,
    packed_shape,
    transpose_bf16,
)
from threadloom.kernels.matmul.split import gemm_split, prepare_split
from threadloom.kernels.matmul.tile import WIDE_TILE, TileShape, make_tile

__all__ = [
    "K_STEP",
    "PANEL",
    "TILE_SIZE",
    "WIDE_TILE",
    "BlasInfo",
    "GemmBackend",
    "MatrixRef",
    "Op",
    "PackedBits",
    "TileShape",
    "address_of",
    "blas_info",
    "configure_tiles",
    "fp16_scratch_sizes",
    "fp16_sums_size",
    "gemm",
    "gemm_backend",
    "gemm_bf16",
    "gemm_fp16",
    "gemm_rows_bf16",
    "gemm_split",
    "linear_bf16",
    "linear_fp16",
    "linear_gelu_bf16",
    "make_tile",
    "matrix_ref",
    "pack_bf16",
    "pack_float32",
    "pack_pair",
    "packed_shape",
    "prepare_bf16",
    "prepare_split",
    "release_tiles",
    "shifted",
    "tile_amx",
    "transpose_bf16",
]
