"""Metrics survive a kill: a checkpoint is not written before the metrics up to its step."""

import os
import signal
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.stages.support import STORY, forked, story
from threadloom.stages.memory.graph_items import Evaluation, Event, Update
from threadloom.stages.run.report import Reporter
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunMode, finished_checkpoints, read_metrics

pytestmark = [pytest.mark.timeout(60), STORY]


@pytest.mark.parametrize("slow", [Update, Evaluation])
@pytest.mark.parametrize("delay", [0, 2])
def test_metrics_that_are_written_late_are_not_lost(slow: type, delay: int, tmp_path: Path) -> None:
    """The process is killed before it writes the metrics of step 4.

    A run resumed from the checkpoints that exist then must end with every line.
    """
    config = story(tmp_path, f"delay={delay}", "steps=8", "evaluation.interval=2", "checkpoint.interval=2")
    out = tmp_path / "run"

    def child() -> None:
        take = Reporter.take

        def late(self: Reporter, event: Event, statistics: object) -> None:
            if isinstance(event, slow) and event.step == 4:
                spin(out)
                os.kill(os.getpid(), signal.SIGKILL)
            take(self, event, statistics)  # type: ignore[arg-type]

        with patch.object(Reporter, "take", late):
            train(config, out)

    assert forked(child) == -signal.SIGKILL
    standing = [int(path.name[5:]) for path in finished_checkpoints(out / "checkpoints")]
    assert standing == [2], "the checkpoint of step 4 waits for the metrics of step 4"
    train(config, out, RunMode.RESUME)
    records = read_metrics(out / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 9))
    assert sorted(record["step"] for record in records if "val_loss" in record) == [2, 4, 6, 8]


def spin(out: Path) -> None:
    """Wait for the checkpoint of step 4, many times as long as writing one takes."""
    for _ in range(20_000):
        if (out / "checkpoints" / "step-000004").exists():
            return
