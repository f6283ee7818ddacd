"""The benchmark of growth: times to a loss on made-up curves, and its table and file on a tiny model."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.crystalline_grow import LARGE, SECONDS, UPDATES, Benchmark, Curve, Trained, plans, table
from tests.stages.support import story
from threadloom.stages.config import ConfigError
from threadloom.stages.run import saved_config

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache


def test_the_time_to_a_loss_is_interpolated_over_both_phases() -> None:
    curve = Curve((10.0, 20.0), (4.0, 3.0), 25.0).then(Curve((5.0, 15.0), (2.0, 2.5), 15.0))
    assert (curve.total, curve.seconds) == (40.0, (10.0, 20.0, 30.0, 40.0))
    assert [curve.time_to(loss) for loss in (4.5, 4.0, 3.25, 2.5, 2.0, 1.9)] == [10.0, 10.0, 17.5, 25.0, 30.0, None]


def trained(plan: str, equal: str, seed: int, final: float, reached: float | None) -> Trained:
    return Trained(plan, equal, seed, 10, 30, 50.0, 10.0, 0.1, final, {"2": reached})


def test_the_table_has_paired_differences_and_the_runs_that_reached_a_loss() -> None:
    done = [
        trained(LARGE, UPDATES, 1, 2.0, 40.0), trained("a", SECONDS, 1, 1.9, 30.0),
        trained(LARGE, UPDATES, 2, 2.2, None), trained("a", SECONDS, 2, 2.0, None),
    ]  # fmt: skip
    console = Console(width=150, file=io.StringIO(), record=True)
    console.print(table(done, [2.0]))
    lines = console.export_text().splitlines()
    assert "40.0 (1 of 2)" in lines[1]
    assert "-0.1500 ± 0.0500" in lines[2]
    assert "30.0 (1 of 2)" in lines[2]


def test_every_plan_is_trained_with_equal_updates_and_equal_seconds(tmp_path: Path) -> None:
    config = story(tmp_path, "model.layers=2", "steps=8", "schedule.warmup=1")
    benchmark = Benchmark(config, tmp_path / "out", (9.0, 0.1), rate=0.5)
    done = benchmark.run([3], [0.5])
    assert [(run.plan, run.equal) for run in done] == [
        (LARGE, UPDATES), ("width × 2 after 50%", UPDATES), ("width × 2 after 50%", SECONDS),
        ("depth × 2 after 50%", UPDATES), ("depth × 2 after 50%", SECONDS),
    ]  # fmt: skip
    for run in done:
        assert run.times["0.1"] is None
        assert run.times["9"] is not None
        assert run.equal == SECONDS or run.small_updates + run.large_updates == 8
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"]) == 5
    large = [saved_config(path) for path in (tmp_path / "out").iterdir() if path.name.endswith("updates-3-large")]
    assert [(grown.model.channels, grown.model.layers) for grown in large] == [(16, 2)] * 2
    assert {grown.optimizer.lr for grown in large} == {5e-4}
    assert {grown.schedule.decay_steps for grown in large} == {8}


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an even number of channels, heads and layers"):
        plans(story(tmp_path), [0.5])
