"""Early stopping and kept checkpoints: the same last update with threads, replayed, and in parts."""

import json
from pathlib import Path

import pytest

from tests.stages.resolve.support import refusal
from tests.stages.support import build, run_sequence, run_threads, story, tiny
from tests.stages.training.test_resume import files, losses
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.memory.graph_items import Evaluation, Event, Update
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.run import saved_config, train
from threadloom.stages.step.early_stopping import EarlyStopping
from threadloom.stages.storage import RunMode, read_metrics
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

PATIENCE = 2
COMMON = ("steps=60", f"evaluation.patience={PATIENCE}", "optimizer.lr=0.3", "schedule.kind=constant")


def last(evaluations: dict[int, float], patience: int = PATIENCE) -> int | None:
    """Return the step at which a run stops, counted plainly."""
    values = list(evaluations.items())
    for count, (step, _) in enumerate(values, 1):
        recent, earlier = values[max(count - patience, 0) : count], values[: max(count - patience, 0)]
        if earlier and min(loss for _, loss in recent) >= min(loss for _, loss in earlier):
            return step
    return None


def test_an_equal_loss_is_no_lower_one() -> None:
    stopping = EarlyStopping(PATIENCE, 1, 0, {})
    for step, loss in enumerate((3.0, 2.0, 2.0, 2.0), 1):
        assert stopping.reason is None
        stopping.take(step, loss)
    assert stopping.stops_at(4)
    assert "of 2.0000 after 2 updates" in str(stopping.reason)


def ended(training: Training, events: list[Event]) -> tuple[int, dict[int, float]]:
    found = {event.step: event.val_loss for event in events if isinstance(event, Evaluation)}
    updates = [event.step for event in events if isinstance(event, Update)]
    assert training.banks.statistics().newest == updates[-1]
    return updates[-1], found


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("interval", [1, 3])
def test_the_last_update_is_that_of_the_losses(interval: int, delay: int, tmp_path: Path) -> None:
    common = (
        *COMMON,
        f"evaluation.interval={interval}",
        f"delay={delay}",
        "checkpoint.interval=2",
        "checkpoint.keep=0",
    )
    replayed = build(tiny(*common), evaluate=True)
    step, evaluations = ended(replayed, run_sequence(replayed))
    assert step == last(evaluations)
    assert step < 60
    assert replayed.stopping is not None
    assert f"after {min(evaluations, key=evaluations.__getitem__):,} updates" in str(replayed.stopping.reason)

    threads = build(tiny(*common, "threads.forward=3", "threads.backward=2"), tmp_path, evaluate=True)
    assert ended(threads, run_threads(threads)) == (step, evaluations)
    saved = threads.save_newest()
    assert (saved is None) == (step % 2 == 0), "unless it has been written"
    middle = step // 2 // 2 * 2
    if middle:
        earlier = {each: loss for each, loss in evaluations.items() if each <= middle}
        resumed = build(
            tiny(*common), evaluate=True, start=Checkpoint.open(tmp_path / f"step-{middle:06d}"), losses=earlier
        )
        assert ended(resumed, run_threads(resumed))[0] == step


def test_a_run_in_parts_stops_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    common = (*COMMON, "evaluation.interval=2", "checkpoint.interval=4", "checkpoint.keep=1", "checkpoint.best=true",
              "checkpoint.every=8", "pictures=false")  # fmt: skip
    whole = train(story(tmp_path, *common), tmp_path / "whole")
    evaluations = {
        line["step"]: line["val_loss"]
        for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")
        if "val_loss" in line
    }
    assert whole.step == last(evaluations)
    assert whole.step < 60
    assert whole.val_loss == evaluations[whole.step]
    assert "evaluation.patience=2" in str(whole.stopped)
    kept = {int(path.name[5:]) for path in (tmp_path / "whole" / "checkpoints").iterdir()}
    written = {*range(4, whole.step, 4), whole.step}
    best = min(written, key=lambda step: (evaluations[step], step))
    assert kept == {whole.step, best, *(step for step in written if step % 8 == 0)}

    for steps in (3, 5, 60):
        mode = RunMode.RESUME if steps > 3 else RunMode.NEW
        outcome = train(story(tmp_path, *common, f"steps={steps}", f"threads.forward={steps % 3 + 1}"),
                        tmp_path / "parts", mode)  # fmt: skip
        assert outcome.step == min(steps, whole.step)
    assert files(tmp_path / "parts", whole.step) == files(tmp_path / "whole", whole.step)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")

    again = train(saved_config(tmp_path / "whole"), tmp_path / "whole", RunMode.RESUME)
    assert (again.step, again.val_loss, again.stopped) == (whole.step, whole.val_loss, whole.stopped)
    patient = apply_overrides(saved_config(tmp_path / "whole"), ["evaluation.patience=100", f"steps={whole.step + 2}"])
    assert train(patient, tmp_path / "whole", RunMode.RESUME).step == whole.step + 2
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["evaluation"]["patience"] == 100


@pytest.mark.parametrize(
    ("subject", "overrides"),
    [
        ("evaluation.interval", ["evaluation.patience=2", "evaluation.interval=0"]),
        ("evaluation.final_batches", ["evaluation.patience=2", "evaluation.final_batches=3"]),
        ("evaluation.final_batches", ["checkpoint.best=true", "evaluation.final_batches=3"]),
        ("checkpoint.interval", ["checkpoint.best=true", "checkpoint.interval=3", "evaluation.interval=2"]),
        ("checkpoint.every", ["checkpoint.every=5", "checkpoint.interval=2"]),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(subject: str, overrides: list[str]) -> None:
    with refusal(subject):
        tiny(*overrides)
