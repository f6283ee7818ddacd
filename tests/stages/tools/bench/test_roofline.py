"""The roofline model with made-up peaks."""

import pytest

from threadloom.stages.config.settings import Precision
from threadloom.stages.models import Geometry
from threadloom.stages.tools.bench.peaks import non_increasing
from threadloom.stages.tools.bench.roofline import (
    BandwidthLevel,
    GemmPeak,
    KernelTime,
    KernelWork,
    Peaks,
    arithmetic_seconds,
    attention_work,
    flops_per_token,
    gemm_work,
    roofline_bound,
    roofline_bound_of_steps,
    total,
)

BF16 = GemmPeak(Precision.BF16, 400.0, 760.0)
PEAKS = Peaks(
    2, 100.0, 190.0, 10.0, 18.0,
    (BandwidthLevel(1_000, 80.0), BandwidthLevel(1_000_000, 40.0), BandwidthLevel(10_000_000, 10.0)), (BF16,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "rate"), [(1, 80), (1_000, 80), (999_999, 80), (1_000_000, 40), (2_000_000, 40), (10**7, 10), (10**12, 10)]
)
def test_the_bandwidth_is_that_of_the_largest_size_within_the_working_set(size: int, rate: float) -> None:
    """A smaller size may be faster, so that a bound may be too low but not too high."""
    assert PEAKS.bandwidth(size) == rate


def test_an_array_changed_in_place_is_stored_once_and_moves_twice() -> None:
    in_place = KernelWork(0.0, 1.4e6, held=8e5)
    assert roofline_bound(in_place, PEAKS)[0] == pytest.approx(1.4e6 / 80e9), "8e5 bytes are in the first level"
    assert roofline_bound(KernelWork(0.0, 1.4e6), PEAKS)[0] == pytest.approx(1.4e6 / 40e9)


def test_no_size_is_slower_than_a_larger_one() -> None:
    measured = [BandwidthLevel(1, 70.0), BandwidthLevel(2, 110.0), BandwidthLevel(4, 40.0), BandwidthLevel(8, 45.0)]
    assert [level.gb_per_s for level in non_increasing(measured)] == [110.0, 110.0, 45.0, 45.0]


def test_without_sizes_the_bandwidth_is_that_of_memory() -> None:
    assert Peaks(1, 1.0, 1.0, 7.0, 7.0, ()).bandwidth(5) == 7.0


def test_the_bound_is_the_larger_of_arithmetic_and_traffic() -> None:
    assert roofline_bound(KernelWork(1e9, 8e5), PEAKS) == (0.01, "compute")
    seconds, bound = roofline_bound(KernelWork(1e5, 8e5), PEAKS)
    assert seconds == pytest.approx(1e-5)
    assert bound == "bandwidth"


def test_gemms_have_the_peak_of_their_precision_and_other_arithmetic_that_of_float32() -> None:
    assert PEAKS.gemm(Precision.BF16) is BF16
    for precision in (Precision.FLOAT32, Precision.FP16):
        assert PEAKS.gemm(precision) == GemmPeak(Precision.FLOAT32, 100.0, 190.0), "float16 is upcast"
    half_gemm = KernelWork(8e9, 0.0, 4e9)
    assert arithmetic_seconds(half_gemm, PEAKS, Precision.BF16) == pytest.approx(0.05)
    assert arithmetic_seconds(half_gemm, PEAKS) == pytest.approx(0.08)
    assert roofline_bound(half_gemm, PEAKS, Precision.BF16)[0] == pytest.approx(0.05)


def test_the_bound_of_steps_is_the_sum_of_their_bounds() -> None:
    computes, moves = KernelWork(1e9, 8e5), KernelWork(1e5, 8e5)
    seconds, bound = roofline_bound_of_steps([(computes, 1), (moves, 2)], PEAKS)
    assert seconds == pytest.approx(0.01 + 2 * 1e-5)
    assert bound == "compute", "most of it"
    assert roofline_bound_of_steps([(computes, 0), (moves, 1)], PEAKS)[1] == "bandwidth"


def test_a_kernel_and_its_bound() -> None:
    one = KernelTime("k", 6, KernelWork(4e9, 2e8), 0.05, (0.04, 0.06), 0.04, "compute", arithmetic=0.02)
    assert one.gflop_per_s == pytest.approx(80)
    assert one.gb_per_s == pytest.approx(4)
    assert one.above_floor == pytest.approx(1.25)
    assert one.of_peak == pytest.approx(0.4)
    assert one.per_update == pytest.approx(0.3)
    assert one.lost == pytest.approx(0.06)


def test_a_kernel_faster_than_its_bound_has_no_possible_gain() -> None:
    assert KernelTime("k", 6, KernelWork(1.0, 1.0), 0.03, (0.0, 0.0), 0.04, "compute").lost == 0


def test_the_work_of_gemm() -> None:
    assert gemm_work(2, 3, 5) == KernelWork(60, 4 * (10 + 15 + 6), 60)
    assert gemm_work(2, 3, 5, adds=True).bytes == 4 * (10 + 15 + 12)
    assert gemm_work(2, 3, 5, operand=2, result=4).bytes == 2 * (10 + 15) + 4 * 6
    assert gemm_work(2, 3, 5, operand=2, result=2, adds=True).bytes == 2 * (10 + 15 + 12)
    tiny = Geometry(7, 3, 1, 1, 5)
    assert attention_work(2, tiny, backward=False, element=2).bytes * 2 == attention_work(2, tiny, backward=False).bytes
    assert total([(KernelWork(1, 2, 1), 3), (KernelWork(10, 20), 1)]) == KernelWork(13, 26, 3)
    assert gemm_work(2, 3, 5, adds=True).working_set == 4 * (10 + 15 + 6)
    assert total([(KernelWork(1, 20, 1, held=10), 1), (KernelWork(1, 5), 2)]).working_set == 20


def test_the_parts_of_an_update_add_up_to_the_formula() -> None:
    """Without the gradients of vectors and the embedding, which have no matrix multiply."""
    g = Geometry(50, 8, 3, 2, 16)
    sequences, rows = 4, 32
    linear = [(16, 48), (16, 16), (16, 64), (64, 16)]
    done = sum(3 * gemm_work(rows, o, i).flops for i, o in linear) * g.layers + 3 * gemm_work(rows, 50, 16).flops
    done += g.layers * sum(attention_work(sequences, g, backward=b).flops for b in (False, True))
    vectors = 3 * (4 * 16 + 3 * 16 + 16 + 64 + 16) + 32  # LayerNorms and biases
    assert done == rows * (flops_per_token(g) - 6 * vectors)


def test_the_formula_for_nanogpt() -> None:
    assert flops_per_token(Geometry(65, 64, 4, 4, 128)) == 6 * (809_856 - 8_192) + 6 * 4 * 64 * 128
