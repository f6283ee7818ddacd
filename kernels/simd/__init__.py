"""Building blocks of kernels: exp and log as polynomials, bfloat16 and float16 conversion, constants, LLVM IR helpers.

May import: compiling.
"""

from threadloom.kernels.simd.bfloat16 import (
    BF16Bits as BF16Bits,
    bf16_from_float32 as bf16_from_float32,
    from_bf16 as from_bf16,
    result_to_bf16 as result_to_bf16,
    round_to_bf16 as round_to_bf16,
    to_bf16 as to_bf16,
    upcast_bf16 as upcast_bf16,
)
from threadloom.kernels.simd.constants import (
    EXP2_HIGHEST as EXP2_HIGHEST,
    EXP2_LOWEST as EXP2_LOWEST,
    EXP2_POLYNOMIAL as EXP2_POLYNOMIAL,
    EXP_HIGHEST as EXP_HIGHEST,
    EXP_LOWEST as EXP_LOWEST,
    EXP_POLYNOMIAL as EXP_POLYNOMIAL,
    GELU_CUBIC as GELU_CUBIC,
    GELU_CUBIC_LOG2 as GELU_CUBIC_LOG2,
    GELU_LINEAR as GELU_LINEAR,
    GELU_LINEAR_LOG2 as GELU_LINEAR_LOG2,
    INTEGER_ROUNDER as INTEGER_ROUNDER,
    LARGEST_BF16 as LARGEST_BF16,
    LN2_HIGH as LN2_HIGH,
    LN2_LOW as LN2_LOW,
    LOG2_E as LOG2_E,
    MANTISSA_BITS as MANTISSA_BITS,
    ONE_BITS as ONE_BITS,
)
from threadloom.kernels.simd.element import (
    FloatRow as FloatRow,
    load_element as load_element,
    store_element as store_element,
    store_result as store_result,
)
from threadloom.kernels.simd.exponential import (
    exp2_32 as exp2_32,
    exp32 as exp32,
    log32 as log32,
    row_max as row_max,
    sigmoid32 as sigmoid32,
)
from threadloom.kernels.simd.features import (
    DotPath as DotPath,
    LowPrecisionInfo as LowPrecisionInfo,
    dot_path as dot_path,
    low_precision_info as low_precision_info,
    read_dot_path as read_dot_path,
)
from threadloom.kernels.simd.float16 import (
    FP16Bits as FP16Bits,
    fp16_from_float32 as fp16_from_float32,
    from_fp16 as from_fp16,
    round_to_fp16 as round_to_fp16,
    to_fp16 as to_fp16,
    upcast_fp16 as upcast_fp16,
)
from threadloom.kernels.simd.scalar import (
    Bits16 as Bits16,
    load16 as load16,
    store16 as store16,
    store_result16 as store_result16,
)
from threadloom.kernels.simd.vector import (
    FLOAT32 as FLOAT32,
    FLOAT32_VECTOR as FLOAT32_VECTOR,
    HAS_AMX_BF16 as HAS_AMX_BF16,
    HAS_AVX2 as HAS_AVX2,
    HAS_AVX512_BF16 as HAS_AVX512_BF16,
    INT8 as INT8,
    INT16 as INT16,
    INT16_VECTOR as INT16_VECTOR,
    INT32 as INT32,
    INT32_VECTOR as INT32_VECTOR,
    INT64 as INT64,
    LANES as LANES,
    Bfloat as Bfloat,
    broadcast as broadcast,
    dot_pairs as dot_pairs,
    exchange_lanes as exchange_lanes,
    float32_vector as float32_vector,
    fused_multiply_add as fused_multiply_add,
    int32_vector as int32_vector,
    int64 as int64,
    interleave_rows as interleave_rows,
    load_float32 as load_float32,
    load_uint16 as load_uint16,
    pointer as pointer,
    prefetch as prefetch,
    round_result as round_result,
    round_vector as round_vector,
    rounded_bits as rounded_bits,
    stack_buffer as stack_buffer,
    store_float32 as store_float32,
    store_uint16 as store_uint16,
    store_uint32 as store_uint32,
    transpose_uint16 as transpose_uint16,
    transpose_uint32 as transpose_uint32,
    upcast_even as upcast_even,
    upcast_odd as upcast_odd,
)
from threadloom.kernels.simd.vector_exp2 import exp2_vector as exp2_vector
from threadloom.kernels.simd.vector_rows import (
    VECTOR_BYTES as VECTOR_BYTES,
    load_floats as load_floats,
    maximum as maximum,
    reduce_lanes as reduce_lanes,
    round_row as round_row,
    store_bf16 as store_bf16,
)
