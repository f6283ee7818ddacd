"""A program: what of low precision this process has, and whether it computes as NumPy does; for test_lowp_masked.py.

Numba is told by the environment to compile for a lesser processor than the one at hand. Prints one line of JSON.
"""

import json
import sys

from kernels.lowp_features import low_precision_info
from kernels.lowp_half import float32_from_half, half_from_float32
from kernels.lowp_vector import HAS_DOT, HAS_HALF, HAS_TILES, LANES
from tests.kernels import test_lowp_convert, test_lowp_gemm, test_lowp_half
from tests.kernels.lowp_support import on_path, paths_here

SIZES = ((7, 33, 5), (32, 32, 32), (45, 70, 67), (17, 64, 131))
"""Rows, columns and inner size: whole tiles, and edges on every side."""


def main() -> None:
    """Hold conversions and products on every path against float64, and say what there was to hold.

    With ``--all`` also arrays without gaps between their rows, for which every kernel is compiled once more.
    """
    for path in paths_here():
        with on_path(path):
            for rows, columns, inner in SIZES:
                for at_end in (True, False):
                    test_lowp_gemm.check(rows, columns, inner, at_end, gap=3)
            if "--all" in sys.argv:
                test_lowp_gemm.check(1, 1, 1, True, gap=0)
                test_lowp_gemm.check(33, 65, 47, True, gap=0)
                test_lowp_gemm.test_the_three_products_of_a_linear_layer(path)
                test_lowp_gemm.test_nan_and_infinity_come_through(path)
                test_lowp_gemm.test_three_products_are_nearly_float32(path)
    test_lowp_convert.test_rounding_is_to_the_nearest_and_ties_go_to_even()
    test_lowp_convert.test_what_is_no_number_or_too_large()
    test_lowp_convert.test_the_two_terms_of_a_split()
    test_lowp_half.test_every_float16_is_widened_as_numpy_does(float32_from_half)
    test_lowp_half.test_any_float32_is_rounded_as_numpy_does(half_from_float32)
    info = low_precision_info()
    found = {
        "path": info.path.name,
        "half_conversion": info.half_conversion,
        "has": [HAS_TILES, HAS_DOT, HAS_HALF],
        "lanes": LANES,
        "held": [path.name for path in paths_here()],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
