"""The checkpoints that are kept, compared with a plain enumeration, and as they come one after another."""

import math

import pytest
from hypothesis import given, strategies as st

from threadloom.stages.checkpoint import Retention


@given(
    st.lists(st.integers(1, 60), unique=True).map(sorted), st.integers(1, 4), st.sampled_from([0, 3, 5]),
    st.dictionaries(st.integers(1, 60), st.sampled_from([1.0, 2.0, 3.0, math.nan])),
)  # fmt: skip
def test_a_checkpoint_is_kept_for_its_age_its_step_or_its_loss(
    steps: list[int], newest: int, every: int, losses: dict[int, float]
) -> None:
    """Removing as they come keeps what removing at once keeps: the best so far is never removed before a better one."""
    scored = [step for step in steps if losses.get(step, math.nan) < math.inf]
    best = [step for step in scored if all((losses[step], step) <= (losses[other], other) for other in scored)]
    expected = {step for step in steps if step in steps[-newest:] or (every and step % every == 0) or step in best}
    assert Retention(newest, every, losses).kept(steps) == expected
    present: list[int] = []
    for step in steps:
        known = {each: loss for each, loss in losses.items() if each <= step}
        present = sorted(Retention(newest, every, known).kept([*present, step]))
    assert set(present) == expected


def test_all_are_kept_without_a_number_and_a_negative_one_is_refused() -> None:
    assert Retention(0, 7, {1: 0.5}).kept([1, 2, 3]) == {1, 2, 3}
    with pytest.raises(ValueError, match="keep: expected"):
        Retention(-1)
