"""Linear layers in both 16-bit formats without a bias, and without a gradient."""

import numpy as np

from tests.error_bounds import product_error
from tests.kernels.bits16.formats import BF16, Format, pack
from tests.kernels.bits16.test_layers import EITHER
from tests.kernels.comparison import within
from threadloom.kernels.bits16.linear import linear_backward_bias, linear_backward_weight, linear_forward
from threadloom.kernels.bits16.tensors import Fp16UpcastScratch, SecondProduct
from threadloom.kernels.matmul.bf16 import prepare_bf16


def make_upcast() -> Fp16UpcastScratch:
    return Fp16UpcastScratch(*(np.empty(10_000, np.float32) for _ in range(3)))


@EITHER
def test_forward_without_a_bias(fmt: Format) -> None:
    prepare_bf16()
    rng = np.random.default_rng(0)
    x, weight, out = fmt.random(rng, 7, 33), fmt.random(rng, 33, 65), np.zeros((7, 65), fmt.kind)
    matrix = pack(weight) if fmt is BF16 else weight
    linear_forward(x, matrix, SecondProduct(x[:, :0], matrix), np.zeros(0, np.float32), out, make_upcast())
    a, b = fmt.numbers(x), fmt.numbers(weight)
    error = 2 * product_error(a, b)  # the dot products of bfloat16 may round toward zero
    assert within(fmt.numbers(out), a @ b, (1 + fmt.unit) * error + fmt.rounding(a @ b))


@EITHER
def test_a_gradient_without_elements_is_not_computed(fmt: Format) -> None:
    """It belongs to a parameter that is not trained."""
    prepare_bf16()
    rng = np.random.default_rng(0)
    x_t, d_out, memory = fmt.random(rng, 33, 7), fmt.random(rng, 7, 65), np.full(5000, 77.0, np.float32)
    for accumulate in (False, True):
        linear_backward_weight(x_t, d_out, memory[:0].reshape(0, 0), accumulate, make_upcast())
        linear_backward_bias(d_out, memory[:0], accumulate)
    assert (memory == 77.0).all()
