"""Convergence: a tiny model learns a periodic text at every delay. The full recipe is a benchmark."""

import math
from pathlib import Path

import pytest

from tests.stages.support import story
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.run.session import train

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_periodic_text_is_learned(delay: int, tmp_path: Path) -> None:
    """Twelve different letters in a fixed order: the loss falls from ln 12 = 2.5 nats to nearly zero."""
    (tmp_path / "text.txt").write_text("abcdefghijkl" * 100)
    config = story(tmp_path, f"delay={delay}", "steps=300", "optimizer.lr=1e-2", "schedule.warmup=10", "seed=1")
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    assert outcome.val_loss < 0.05


@pytest.mark.parametrize("delay", [0, 2])
def test_a_text_that_needs_attention_is_learned(delay: int, tmp_path: Path) -> None:
    """Two letters alternate after each letter, so that a prediction needs more context than the previous letter."""
    (tmp_path / "text.txt").write_text("abacabac" * 150)
    config = apply_overrides(
        story(tmp_path, f"delay={delay}", "steps=1000", "optimizer.lr=3e-3", "schedule.warmup=100"),
        ["model.layers=2"],
    )
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    # Every validation window of 8 begins with an "a" without context: ln 2 for the next letter, 0 for the others.
    bound = math.log(2) / 8
    assert 0.5 * bound < outcome.val_loss < bound + 0.05
