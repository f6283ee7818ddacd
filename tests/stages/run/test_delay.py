"""A run with a delay: what it says at its start, and its continuation."""

from pathlib import Path

import msgspec

from tests.stages.support import story
from threadloom.stages.config import DelayCorrection
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import RunDirectory, RunMode, read_metrics


def test_a_run_says_its_remedy_and_what_its_delay_costs(logged: list[str], tmp_path: Path) -> None:
    train(story(tmp_path, "delay=2", "steps=2", "pictures=false"), tmp_path / "run", tuned=False)
    assert any("delay 2: batch k reads version k - 2, weights forecast 2 updates ahead" in line for line in logged)
    assert any("above delay=0 after equal updates" in line for line in logged)


def test_a_run_without_a_delay_says_nothing_about_one(logged: list[str], tmp_path: Path) -> None:
    train(story(tmp_path, "steps=2", "pictures=false"), tmp_path / "run", tuned=False)
    assert not any("batch k reads" in line or "delay=0" in line for line in logged)


def test_a_run_is_resumed_with_the_remedy_that_it_began_with(tmp_path: Path) -> None:
    """An open remedy would be the default of the delay, which is another one."""
    config, out = story(tmp_path, "delay=1", "steps=3", "schedule.decay_steps=6", "pictures=false"), tmp_path / "run"
    plain = msgspec.structs.replace(config, delay_correction=DelayCorrection.NONE)
    train(plain, out, tuned=False)
    optimizer = msgspec.structs.replace(config.optimizer, beta1=0.9)
    train(msgspec.structs.replace(config, optimizer=optimizer, steps=6), out, RunMode.RESUME, tuned=False)
    assert (saved_config(out).steps, saved_config(out).delay_correction) == (6, DelayCorrection.NONE)


def test_an_evaluation_that_a_stopped_run_missed_is_made_of_the_weights(tmp_path: Path) -> None:
    """A resumed run evaluates the version that it starts from first, from the copy and not from the forecast."""
    common = ("delay=2", "evaluation.interval=3", "checkpoint.interval=3", "schedule.decay_steps=6", "pictures=false")
    train(story(tmp_path, *common, "steps=6"), tmp_path / "whole", tuned=False)
    train(story(tmp_path, *common, "steps=3"), tmp_path / "parts", tuned=False)
    metrics = RunDirectory(tmp_path / "parts").metrics
    kept = [line for line in metrics.read_text().splitlines(keepends=True) if '"val_loss"' not in line]
    metrics.write_text("".join(kept))
    train(story(tmp_path, *common, "steps=6"), tmp_path / "parts", RunMode.RESUME, tuned=False)
    losses = [
        {
            record["step"]: record["val_loss"]
            for record in read_metrics(RunDirectory(run).metrics)
            if "val_loss" in record
        }
        for run in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert losses[0].keys() == {3, 6}
    assert losses[1] == losses[0]
