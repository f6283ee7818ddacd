"""Matrix products: BLAS, Numba float32, packed bfloat16 (AVX-512, AMX), float16, and bf16x3, and the choice among them.

May import: compiling, simd, common.
"""

from threadloom.kernels.matmul.amx import (
    K_STEP as K_STEP,
    TILE_SIZE as TILE_SIZE,
    configure_tiles as configure_tiles,
    release_tiles as release_tiles,
    tile_amx as tile_amx,
)
from threadloom.kernels.matmul.backend import (
    BlasInfo as BlasInfo,
    GemmBackend as GemmBackend,
    blas_info as blas_info,
    gemm as gemm,
    gemm_backend as gemm_backend,
)
from threadloom.kernels.matmul.bf16 import (
    gemm_bf16 as gemm_bf16,
    gemm_rows_bf16 as gemm_rows_bf16,
    gemm_sum_bf16 as gemm_sum_bf16,
    linear_bf16 as linear_bf16,
    linear_gelu_bf16 as linear_gelu_bf16,
    prepare_bf16 as prepare_bf16,
)
from threadloom.kernels.matmul.blas_threads import flushing_blas_threads as flushing_blas_threads
from threadloom.kernels.matmul.fp16 import (
    Fp16Operands as Fp16Operands,
    fp16_scratch_sizes as fp16_scratch_sizes,
    fp16_sums_size as fp16_sums_size,
    gemm_fp16 as gemm_fp16,
    linear_fp16 as linear_fp16,
)
from threadloom.kernels.matmul.operands import (
    MatrixRef as MatrixRef,
    Op as Op,
    address_of as address_of,
    matrix_ref as matrix_ref,
    shifted as shifted,
)
from threadloom.kernels.matmul.pack import (
    PANEL as PANEL,
    PackedBits as PackedBits,
    pack_bf16 as pack_bf16,
    pack_float32 as pack_float32,
    pack_pair as pack_pair,
    packed_shape as packed_shape,
    transpose_bf16 as transpose_bf16,
    unpack_bf16 as unpack_bf16,
)
from threadloom.kernels.matmul.repack import (
    transpose_packed as transpose_packed,
    transposed_part_size as transposed_part_size,
)
from threadloom.kernels.matmul.split import gemm_split as gemm_split, prepare_split as prepare_split
from threadloom.kernels.matmul.tile import WIDE_TILE as WIDE_TILE, TileShape as TileShape, make_tile as make_tile
from threadloom.kernels.matmul.variants import (
    DEFAULT_VARIANT as DEFAULT_VARIANT,
    VARIANTS as VARIANTS,
    WIDE as WIDE,
    GemmVariant as GemmVariant,
    ProductKind as ProductKind,
    gemm_variants as gemm_variants,
)
