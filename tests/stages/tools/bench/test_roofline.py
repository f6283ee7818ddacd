"""The roofline's arithmetic on made-up machines."""

import pytest

from threadloom.stages.config.settings import Precision
from threadloom.stages.models.gpt2 import Geometry
from threadloom.stages.tools.bench.peaks import falling
from threadloom.stages.tools.bench.roofline import (
    KernelTime,
    Level,
    Peaks,
    ProductPeak,
    Work,
    arithmetic_of,
    attention_work,
    floor_of,
    floor_of_steps,
    flops_per_token,
    gemm_work,
    total,
)

BF16 = ProductPeak(Precision.BF16, 400.0, 760.0)
PEAKS = Peaks(
    2, 100.0, 190.0, 10.0, 18.0, (Level(1_000, 80.0), Level(1_000_000, 40.0), Level(10_000_000, 10.0)), (BF16,)
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "rate"), [(1, 80), (1_000, 80), (999_999, 80), (1_000_000, 40), (2_000_000, 40), (10**7, 10), (10**12, 10)]
)
def test_the_bandwidth_is_that_of_the_largest_level_that_is_no_larger(size: int, rate: float) -> None:
    """A floor may be too low, not too high: what is smaller than a level may be faster than the level."""
    assert PEAKS.bandwidth(size) == rate


def test_what_is_changed_in_place_takes_its_room_once_and_moves_twice() -> None:
    in_place = Work(0.0, 1.4e6, held=8e5)
    assert floor_of(in_place, PEAKS)[0] == pytest.approx(1.4e6 / 80e9), "8e5 bytes are in the first level"
    assert floor_of(Work(0.0, 1.4e6), PEAKS)[0] == pytest.approx(1.4e6 / 40e9)


def test_no_level_is_slower_than_a_larger_one() -> None:
    measured = [Level(1, 70.0), Level(2, 110.0), Level(4, 40.0), Level(8, 45.0)]
    assert [level.gb_per_s for level in falling(measured)] == [110.0, 110.0, 45.0, 45.0]


def test_without_levels_the_bandwidth_is_memorys() -> None:
    assert Peaks(1, 1.0, 1.0, 7.0, 7.0, ()).bandwidth(5) == 7.0


def test_the_floor_is_the_larger_of_arithmetic_and_traffic() -> None:
    assert floor_of(Work(1e9, 8e5), PEAKS) == (0.01, "compute")
    seconds, bound = floor_of(Work(1e5, 8e5), PEAKS)
    assert seconds == pytest.approx(1e-5)
    assert bound == "bandwidth"


def test_products_have_the_peak_of_their_precision_and_all_else_float32s() -> None:
    assert PEAKS.product(Precision.BF16) is BF16
    for precision in (Precision.FLOAT32, Precision.FP16):
        assert PEAKS.product(precision) == ProductPeak(Precision.FLOAT32, 100.0, 190.0), "float16 is widened"
    half_a_product = Work(8e9, 0.0, 4e9)
    assert arithmetic_of(half_a_product, PEAKS, Precision.BF16) == pytest.approx(0.05)
    assert arithmetic_of(half_a_product, PEAKS) == pytest.approx(0.08)
    assert floor_of(half_a_product, PEAKS, Precision.BF16)[0] == pytest.approx(0.05)


def test_the_floor_of_steps_is_the_sum_of_theirs() -> None:
    computes, moves = Work(1e9, 8e5), Work(1e5, 8e5)
    seconds, bound = floor_of_steps([(computes, 1), (moves, 2)], PEAKS)
    assert seconds == pytest.approx(0.01 + 2 * 1e-5)
    assert bound == "compute", "most of it"
    assert floor_of_steps([(computes, 0), (moves, 1)], PEAKS)[1] == "bandwidth"


def test_a_kernel_beside_its_floor() -> None:
    one = KernelTime("k", 6, Work(4e9, 2e8), 0.05, (0.04, 0.06), 0.04, "compute", arithmetic=0.02)
    assert one.gflop_per_s == pytest.approx(80)
    assert one.gb_per_s == pytest.approx(4)
    assert one.above_floor == pytest.approx(1.25)
    assert one.of_peak == pytest.approx(0.4)
    assert one.per_update == pytest.approx(0.3)
    assert one.lost == pytest.approx(0.06)


def test_a_kernel_below_its_floor_gains_nothing_for_the_others() -> None:
    assert KernelTime("k", 6, Work(1.0, 1.0), 0.03, (0.0, 0.0), 0.04, "compute").lost == 0


def test_the_work_of_products() -> None:
    assert gemm_work(2, 3, 5) == Work(60, 4 * (10 + 15 + 6), 60)
    assert gemm_work(2, 3, 5, adds=True).bytes == 4 * (10 + 15 + 12)
    assert gemm_work(2, 3, 5, operand=2, result=4).bytes == 2 * (10 + 15) + 4 * 6
    assert gemm_work(2, 3, 5, operand=2, result=2, adds=True).bytes == 2 * (10 + 15 + 12)
    assert attention_work(2, 3, 5, backward=False, number=2).bytes * 2 == attention_work(2, 3, 5, backward=False).bytes
    assert total([(Work(1, 2, 1), 3), (Work(10, 20), 1)]) == Work(13, 26, 3)
    assert gemm_work(2, 3, 5, adds=True).working_set == 4 * (10 + 15 + 6)
    assert total([(Work(1, 20, 1, held=10), 1), (Work(1, 5), 2)]).working_set == 20


def test_the_parts_of_an_update_sum_up_to_the_designs_formula() -> None:
    """Without the vectors' gradients and the embedding, which multiply nothing."""
    g = Geometry(50, 8, 3, 2, 16)
    sequences, rows = 4, 32
    linear = [(16, 48), (16, 16), (16, 64), (64, 16)]
    done = sum(3 * gemm_work(rows, o, i).flops for i, o in linear) * g.layers + 3 * gemm_work(rows, 50, 16).flops
    done += g.layers * sum(attention_work(sequences, 8, 16, backward=b).flops for b in (False, True))
    vectors = 3 * (4 * 16 + 3 * 16 + 16 + 64 + 16) + 32  # LayerNorms and biases
    assert done == rows * (flops_per_token(g) - 6 * vectors)


def test_the_formula_for_nanogpt() -> None:
    assert flops_per_token(Geometry(65, 64, 4, 4, 128)) == 6 * (809_856 - 8_192) + 6 * 4 * 64 * 128
