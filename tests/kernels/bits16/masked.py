"""A program: what of low precision this process has, and whether it computes as NumPy does; for test_lowp_masked.py.

Numba is told by the environment to compile for a lesser processor than the one at hand. Prints one line of JSON.
"""

import json
import sys

from tests.kernels.bits16 import test_attention, test_gpt2
from tests.kernels.bits16.formats import BF16
from tests.kernels.bits16.model import check_model
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.matmul import test_bf16, test_split
from tests.kernels.simd import test_bfloat16, test_float16
from threadloom.kernels.matmul.backend import GemmBackend, gemm_backend
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.simd.features import low_precision_info
from threadloom.kernels.simd.float16 import float32_from_fp16, fp16_from_float32
from threadloom.kernels.simd.vector import HAS_AMX_BF16, HAS_AVX512_BF16, HAS_F16C, LANES

SIZES = ((7, 33, 5), (32, 32, 32), (45, 70, 67), (17, 64, 131))
"""Rows, columns and inner size: whole tiles, and edges on every side."""


def products(every_form: bool) -> None:
    """Hold conversions and products on every path against float64.

    With `every_form` also arrays without gaps between their rows, for which every kernel is compiled once more.
    """
    for path in paths_here():
        with on_path(path):
            for rows, columns, inner in SIZES:
                for at_end in (True, False):
                    test_bf16.check(rows, columns, inner, at_end, gap=3)
            if every_form:
                test_bf16.check(1, 1, 1, True, gap=0)
                test_bf16.check(33, 65, 47, True, gap=0)
                test_bf16.test_the_three_products_of_a_linear_layer(path)
                test_bf16.test_nan_and_infinity(path)
    test_bfloat16.test_rounding_is_to_nearest_ties_to_even()
    test_bfloat16.test_nan_infinity_and_overflow()
    test_float16.test_upcast_equals_numpy_for_every_float16(float32_from_fp16)
    test_float16.test_rounding_equals_numpy_for_random_float32(fp16_from_float32)


def attention() -> None:
    """Hold attention in bfloat16 on every path against float64: more than a tile of queries, and less than one."""
    for path in paths_here():
        with on_path(path):
            test_attention.check(2, 2, 48, 97)
            test_attention.check(1, 1, 5, 33, at_end=False)


def the_rest() -> None:
    """Hold attention in float16, bf16x3 and a whole model in bfloat16 against float64."""
    test_attention.check(2, 2, 48, 97, fmt=test_attention.FLOAT16)
    for path in paths_here():
        with on_path(path):
            with gemm_backend(GemmBackend.BF16X3):
                test_split.check(test_split.Case(45, 70, 267, Op.T, Op.N, -2.5, 0.5, True, 3))
                test_split.check(test_split.Case(33, 65, 47, Op.N, Op.T, 1.0, 0.0, False, 3))
            check_model(test_gpt2.SIZES["odd"], BF16)


def main() -> None:
    """Run the checks, and say what there was to hold: products; with ``--attention`` attention; with ``--all`` all."""
    every = "--all" in sys.argv
    if every or "--attention" not in sys.argv:
        products(every)
    if every or "--attention" in sys.argv:
        attention()
    if every:
        the_rest()
    info = low_precision_info()
    found = {
        "path": info.path.name,
        "fp16_conversion": info.fp16_conversion,
        "has": [HAS_AMX_BF16, HAS_AVX512_BF16, HAS_F16C],
        "lanes": LANES,
        "held": [path.name for path in paths_here()],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
