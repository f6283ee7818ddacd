"""The rule by which a run fits into memory, and the settings that would fit."""

import itertools

import pytest

from tests.stages.support import TINY
from threadloom.stages.config import ConfigError
from threadloom.stages.resolve import apply_overrides, resolve
from threadloom.stages.run.fitting import planned_memory, require_memory

pytestmark = pytest.mark.timeout(60)
HUGE = apply_overrides(
    TINY, ["model.vocab_size=50257", "model.heads=4", "model.channels=4096", "model.layers=64", "pictures=false"]
)


def test_a_run_fits_into_exactly_its_plan() -> None:
    resolved = resolve(HUGE, 2)
    needed = sum(planned_memory(resolved).values())
    require_memory(HUGE, resolved, 2, needed)
    require_memory(HUGE, resolved, 2, None)
    with pytest.raises(ConfigError, match=r"--force"):
        require_memory(HUGE, resolved, 2, needed - 1)


@pytest.mark.parametrize("share", [0.99, 0.7, 0.5, 0.1])
def test_the_suggested_settings_fit(share: float) -> None:
    resolved = resolve(HUGE, 2)
    available = int(share * sum(planned_memory(resolved).values()))
    with pytest.raises(ConfigError) as refused:
        require_memory(HUGE, resolved, 2, available)
    words = (refused.value.hint or "").split()
    overrides = [setting for word, setting in itertools.pairwise(words) if word == "--set"]
    assert overrides
    changed = apply_overrides(HUGE, overrides)
    require_memory(changed, resolve(changed, 2), 2, available)


def test_a_preparation_counts_by_how_much_it_exceeds_the_training() -> None:
    resolved = resolve(HUGE, 2)
    training = sum(planned_memory(resolved).values())
    for preparation, excess in ((0, 0), (training, 0), (training + 7, 7)):
        plan = planned_memory(resolved, preparation)
        assert (plan["text preparation"], sum(plan.values())) == (excess, training + excess)


def test_nothing_fits_into_nothing() -> None:
    with pytest.raises(ConfigError, match="a smaller model or a machine with more memory"):
        require_memory(HUGE, resolve(HUGE, 2), 2, 0)
