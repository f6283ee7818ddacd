"""A run whose learning rate is constant until a cooldown is resumed with another number of updates until it begins."""

from pathlib import Path

import pytest

from tests.stages.support import story
from tests.stages.training.test_resume import files, losses
from threadloom.stages.config import ConfigError
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import RunMode

pytestmark = pytest.mark.timeout(60)

COMMON = ("schedule.kind=wsd", "schedule.warmup=1", "schedule.cooldown_share=0.5", "schedule.min_lr=1e-4")


@pytest.mark.parametrize("delay", [0, 1])
def test_a_run_is_prolonged_before_its_cooldown(delay: int, tmp_path: Path) -> None:
    common = (*COMMON, f"delay={delay}")
    train(story(tmp_path, *common, "steps=10"), tmp_path / "whole")
    train(story(tmp_path, *common, "steps=3", "schedule.decay_steps=8"), tmp_path / "run")
    longer = ("steps=10", "schedule.decay_steps=10")
    train(apply_overrides(saved_config(tmp_path / "run"), longer), tmp_path / "run", RunMode.RESUME)
    assert files(tmp_path / "run", 10) == files(tmp_path / "whole", 10)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("delay", [0, 1])
def test_a_run_is_not_prolonged_after_a_rate_of_its_cooldown_was_used(delay: int, tmp_path: Path) -> None:
    """A forecast uses the rates of later updates."""
    train(story(tmp_path, *COMMON, f"delay={delay}", f"steps={5 - delay}", "schedule.decay_steps=8"), tmp_path / "run")
    longer = ("steps=10", "schedule.decay_steps=10")
    with pytest.raises(ConfigError, match=r"^schedule\.decay_steps: expected the settings that the run"):
        train(apply_overrides(saved_config(tmp_path / "run"), longer), tmp_path / "run", RunMode.RESUME)
