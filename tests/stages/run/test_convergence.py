"""It learns: a tiny model takes in a text that repeats itself, at every delay. The real recipe is a benchmark."""

import math
from pathlib import Path

import pytest

from tests.stages.support import story
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.run.session import train

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_text_that_repeats_itself_is_learned(delay: int, tmp_path: Path) -> None:
    """Twelve different letters in a fixed order: from ln 12 = 2.5 nats at the start to next to nothing."""
    (tmp_path / "text.txt").write_text("abcdefghijkl" * 100)
    config = story(tmp_path, f"delay={delay}", "steps=300", "optimizer.lr=1e-2", "schedule.warmup=10", "seed=1")
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    assert outcome.val_loss < 0.05


@pytest.mark.parametrize("delay", [0, 2])
def test_what_needs_attention_is_learned(delay: int, tmp_path: Path) -> None:
    """Each letter is followed by one of two, by turns: only who looks further back than one letter can tell which."""
    (tmp_path / "text.txt").write_text("abacabac" * 150)
    config = apply_overrides(
        story(tmp_path, f"delay={delay}", "steps=1000", "optimizer.lr=3e-3", "schedule.warmup=100"),
        ["model.layers=2"],
    )
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    # Every validation window of 8 begins with an "a" that has nothing before it: ln 2 for what follows, 0 for the rest.
    floor = math.log(2) / 8
    assert 0.5 * floor < outcome.val_loss < floor + 0.05
