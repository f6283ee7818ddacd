"""The guard against spikes: a sliding window computed plainly, and the skipped and stopped updates of whole runs."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.support import build, run_sequence, run_threads, story, tiny
from threadloom.pipeline import StageFailure
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import GuardConfig, SpikeAction
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.memory.spike_guard import GuardState, SpikeGuard
from threadloom.stages.run import train
from threadloom.stages.step.reducer import TrainingDiverged
from threadloom.stages.storage import read_metrics

pytestmark = pytest.mark.timeout(60)

SKIPS = ("guard.action=skip", "guard.window=4", "guard.deviations=0.2")


def spikes(values: list[tuple[float, float]], settings: GuardConfig) -> list[bool]:
    """Return which updates are spikes, from all values before each."""
    found = []
    for index, update in enumerate(values):
        spike = False
        for value, earlier in zip(update, zip(*values[:index], strict=True) if index else ((), ()), strict=True):
            window = np.array([each for each in earlier if math.isfinite(each)])[-settings.window :]
            if not math.isfinite(value):
                spike = True
            elif len(window) >= max(2, settings.window // 2):
                spike |= value > window.mean() + settings.deviations * window.std(ddof=1) + 1e-9
        found.append(spike)
    return found


numbers = st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.0, 10.0, 100.0, math.inf, math.nan])


@settings(deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), max_size=20), st.integers(2, 7), st.sampled_from([0.7, 1.6, 3.3]),
)  # fmt: skip
def test_spikes_are_those_of_a_window_computed_plainly(
    values: list[tuple[float, float]], window: int, deviations: float
) -> None:
    guard = SpikeGuard(GuardConfig(action=SpikeAction.SKIP, window=window, deviations=deviations))
    state, found, in_row = GuardState(), [], 0
    for loss, norm in values:
        found.append(guard.spike(state, loss, norm) is not None)
        state = guard.after(state, loss, norm, skipped=found[-1])
        in_row = in_row + 1 if found[-1] else 0
        assert state.in_row == in_row
    assert found == spikes(values, guard.settings)


@given(st.lists(st.floats(0.1, 10.0), min_size=4, max_size=8))
def test_the_limit_is_that_of_a_sample(values: list[float]) -> None:
    limit = SpikeGuard(GuardConfig(action=SpikeAction.SKIP, window=8, deviations=3.0)).limit(values)
    assert limit == pytest.approx(statistics.fmean(values) + 3.0 * statistics.stdev(values), rel=1e-12)


def test_a_guard_that_is_off_keeps_nothing_and_a_batch_without_tokens_is_no_spike() -> None:
    off = SpikeGuard(GuardConfig())
    assert off.spike(GuardState(), math.nan, math.nan) is None
    assert off.after(GuardState(), 1.0, 1.0, skipped=False) == GuardState()
    guard = SpikeGuard(GuardConfig(action=SpikeAction.SKIP, window=2))
    assert guard.spike(GuardState(losses=(1.0, 1.0), norms=(1.0, 1.0)), None, 0.0) is None


@pytest.mark.parametrize("delay", [0, 2])
def test_a_skipped_update_leaves_everything_but_the_count_of_batches(delay: int, tmp_path: Path) -> None:
    common = (*SKIPS, f"delay={delay}", "steps=8", "optimizer.ema=0.5", "checkpoint.interval=1", "checkpoint.keep=0")
    training = build(tiny(*common), tmp_path, evaluate=True)
    updates = [event for event in run_threads(training) if isinstance(event, Update)]
    skipped = [update.step for update in updates if update.spike]
    found = spikes([(update.loss or 0.0, update.grad_norm) for update in updates], training.guard.settings)
    assert skipped == [step for step, spike in enumerate(found, 1) if spike]
    assert skipped[0] > 1 and len(skipped) < 8
    for update in updates[1:]:
        folders = [tmp_path / f"step-{step:06d}" for step in (update.step - 1, update.step)]
        before, after = ({file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in folders)
        unchanged = update.step in skipped
        assert (before["optimizer.safetensors"] == after["optimizer.safetensors"]) is unchanged
        assert (before["model.safetensors"] == after["model.safetensors"]) is unchanged
    state = Checkpoint.open(tmp_path / "step-000008")
    assert state.scalers[8].skipped == len(skipped)
    assert state.scalers[8].applied == 8 - len(skipped)
    assert state.guard.losses == tuple(update.loss for update in updates[-4:])


def test_a_run_that_stops_says_why_and_what_to_do(tmp_path: Path) -> None:
    stops = ("guard.action=stop", *SKIPS[1:])
    plain, training = build(tiny("steps=8")), build(tiny(*stops, "steps=8"))
    losses = [event.loss for event in run_sequence(plain) if isinstance(event, Update)]
    with pytest.raises(TrainingDiverged, match=r"update \d is a spike: its .* is .*, above .*guard\.action=skip"):
        run_sequence(training)
    assert training.banks.statistics().newest < 8
    many = build(tiny(*SKIPS, "guard.deviations=0", "guard.most=2", "optimizer.lr=0", "schedule.min_lr=0", "steps=40"))
    with pytest.raises(TrainingDiverged, match=r"the last of 2 in a row \(guard\.most\)"):
        run_sequence(many)
    assert losses[0] is not None


def test_metrics_and_log_name_the_skipped_updates(tmp_path: Path) -> None:
    train(story(tmp_path, *SKIPS, "pictures=false"), tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    named = [line for line in lines if line.get("spike")]
    assert named
    assert all(line["skipped"] and "above" in line["spike"] for line in named)
    with pytest.raises(StageFailure, match="is a spike"):
        train(story(tmp_path, *SKIPS, "guard.action=stop", "pictures=false"), tmp_path / "stopped")


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    training = build(tiny("guard.action=skip", "steps=4"))
    with training.banks.lease(0) as lease:
        before = lease.bank.arena.flat.copy()
        lease.bank.arena["lnf_bias"][0] = np.inf
    updates = [event for event in run_sequence(training) if isinstance(event, Update)]
    assert all(update.spike and "is nan" in update.spike for update in updates)
    with training.banks.lease(4) as lease:
        assert (lease.bank.arena.flat != before).sum() == 1
