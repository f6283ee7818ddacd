"""What a kill may not take: a checkpoint never stands on the disk before the metrics that lead up to it."""

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
def test_metrics_that_are_slow_to_be_written_are_not_lost(slow: type, delay: int, tmp_path: Path) -> None:
    """The first metrics of each kind due at step 4 come late: the process dies before it writes them.

    Whatever checkpoint stands by then, the run that goes on from it must end with every line.
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
    """Look for the checkpoint of step 4 for as long as it takes to write one, many times over."""
    for _ in range(20_000):
        if (out / "checkpoints" / "step-000004").exists():
            return
