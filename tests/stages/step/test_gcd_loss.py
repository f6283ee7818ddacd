"""The figure of `evaluation.gcd_loss`: its formula, and that no training changes it."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import story
from threadloom.stages.data import TokenIds
from threadloom.stages.run import train
from threadloom.stages.step import GcdLoss
from threadloom.stages.storage import read_metrics


class TwoPairs:
    """Windows of the pairs (0, 0) and (2, 1), then (1, 1) and (0, 2)."""

    micro_batches, tokens = 2, 4

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        ids[:], targets[:] = ((0, 2), (0, 1)) if micro == 0 else ((1, 0), (1, 2))

    def counted(self, batch: int) -> int:
        return self.tokens


def test_the_figure_of_four_pairs() -> None:
    primes, points = (2, 3, 5), ((0, 0), (1, 0), (1, 1))  # the first points of the Ulam spiral
    expected = 0.0
    for a, b in ((0, 0), (2, 1), (1, 1), (0, 2)):
        similarity = math.gcd(primes[a], primes[b]) / max(primes[a], primes[b])
        expected -= math.log(0.7 * similarity + 0.3 / (1 + math.dist(points[a], points[b]))) / 4
    assert GcdLoss(3, 2).mean(TwoPairs()) == pytest.approx(expected, rel=1e-14)


def test_training_does_not_change_it(tmp_path: Path) -> None:
    settings = ("evaluation.gcd_loss=true", "evaluation.interval=1", "steps=3", "pictures=false")
    outcome = train(story(tmp_path, *settings, "evaluation.batches=2", "evaluation.final_batches=2"), tmp_path / "run")
    records = [record for record in read_metrics(outcome.run.metrics) if "val_loss" in record]
    assert len({record["val_loss"] for record in records}) == 3
    assert len({record["gcd_loss"] for record in records}) == 1
    assert np.isfinite(records[0]["gcd_loss"])
