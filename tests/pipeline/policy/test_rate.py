"""The token bucket, compared with one that is simulated in exact fractions."""

from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import Rate
from threadloom.pipeline.policy import TokenBucket

pytestmark = pytest.mark.timeout(60)

RATES = st.sampled_from([1, 3, 10, 1000, 0.25])
GAPS = st.lists(st.integers(0, 3 * 10**9), min_size=1, max_size=40)


@given(per_second=RATES, burst=st.integers(1, 5), gaps=GAPS)
def test_each_item_passes_at_the_earliest_time_that_the_limit_allows(
    per_second: float, burst: int, gaps: list[int]
) -> None:
    bucket, rate = TokenBucket(Rate(per_second, burst)), Fraction(per_second)
    level, before, now = Fraction(burst), 0, 0
    for gap in gaps:
        now += gap
        level = min(Fraction(burst), level + (now - before) * rate / 10**9) - 1  # negative: tokens that are reserved
        before = now
        late = max(Fraction(0), -level / rate * 10**9)
        # The bucket counts in float64 nanoseconds, below 2^39: 82 roundings of at most 2^-15 ns, and 1 ns for `ceil`.
        assert abs(bucket.reserve(now) - now - late) < 1.01


@given(per_second=RATES, burst=st.integers(1, 5), gaps=GAPS)
def test_no_period_has_more_items_than_the_limit(per_second: float, burst: int, gaps: list[int]) -> None:
    bucket, now = TokenBucket(Rate(per_second, burst)), 0
    passed = []
    for gap in gaps:
        now += gap
        passed.append(bucket.reserve(now))
    assert passed == sorted(passed)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            period = (passed[last] - passed[first] + 1) / 1e9  # one ns more, for the rounding
            assert last - first + 1 <= burst + period * per_second + 1e-9


def test_a_rate_is_checked() -> None:
    for per_second in (0, -1, float("inf"), float("nan"), "3", True):
        with pytest.raises(ValueError, match="expected per_second to be a positive number"):
            Rate(per_second)  # type: ignore[arg-type]
    for burst in (0, 1.5, True):
        with pytest.raises(ValueError, match="expected burst to be a whole number of at least 1"):
            Rate(1, burst)  # type: ignore[arg-type]
