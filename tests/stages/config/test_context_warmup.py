"""The contexts of a warm-up of the sequence length: boundaries between them, and settings that are refused."""

from itertools import groupby

import pytest

from tests.stages.support import tiny
from threadloom.stages.config import ConfigError, ScheduleConfig, context_warmup


@pytest.mark.parametrize(
    ("context", "start", "updates", "expected"),
    [
        (8, 0, 7, [(1, 3), (2, 2), (4, 2), (8, 3)]),
        (8, 2, 6, [(2, 3), (4, 3), (8, 3)]),
        (8, 4, 5, [(4, 5), (8, 3)]),
        (12, 1, 5, [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (12, 3)]),
        (7, 1, 1, [(1, 1), (7, 3)]),
        (8, 1, 2, [(1, 1), (2, 1), (8, 3)]),  # fewer updates than lengths
        (24, 0, 4, [(3, 2), (6, 1), (12, 1), (24, 3)]),
    ],
)
def test_lengths_grow_by_divisors(context: int, start: int, updates: int, expected: list[tuple[int, int]]) -> None:
    warmup = context_warmup(ScheduleConfig(context_warmup=updates, context_start=start), context)
    assert warmup is not None
    lengths = [warmup.context(update) for update in range(updates + 3)]
    assert [(length, len(list(group))) for length, group in groupby(lengths)] == expected
    assert warmup.context(10**9) == context
    with pytest.raises(ValueError, match="updates are numbered from 0, got -1"):
        warmup.context(-1)


def test_without_updates_there_is_none() -> None:
    assert context_warmup(ScheduleConfig(), 8) is None
    assert not tiny().bordered
    assert tiny("schedule.context_warmup=2", "schedule.context_start=1").bordered


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("schedule.context_warmup=2", "schedule.context_start=3"),
            r"context_start: expected a divisor of .* = 8 below",
        ),
        (("schedule.context_warmup=2", "schedule.context_start=16"), r"context_start: expected a divisor .* got 16"),
        (("schedule.context_warmup=2", "schedule.context_start=8"), r"got 8.*its divisors below it are \[1, 2, 4\]"),
        (("schedule.context_start=2",), r"context_start: expected 0 without schedule\.context_warmup, got 2"),
        (("schedule.context_warmup=2", "model.context=12"), r"got 0, which is model\.context / 8.*\[1, 2, 3, 4, 6\]"),
        (("schedule.context_warmup=2", "model.context=4"), r"got 0, which is model\.context / 8.*\[1, 2\]"),
        (("schedule.context_warmup=2", "model.context=1"), r"context_warmup: expected 0 with model\.context=1"),
        (("schedule.context_warmup=-1",), r"schedule\.context_warmup: expected 0 to 1e\+09"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny("model.context=8", *overrides)
