"""The settings that decide the weights."""

import json

import pytest

from tests.stages.resolve.support import tiny
from threadloom.stages.config import (
    ScheduleConfig,
    ScheduleKind,
)
from threadloom.stages.resolve.loading import (
    apply_overrides,
)
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.trajectory_settings import trajectory, trajectory_differences


@pytest.mark.parametrize(
    "override",
    [
        "threads.forward=7", "threads.backward=7", "threads.update=7", "threads.control=true",
        "channel_capacity=9", "slots=3", "extra_banks=2",
        "name=other", "steps=11", "evaluation.interval=3", "checkpoint.keep=9", "trace.batches=1", "data.text=x",
        "schedule.every=7",
    ],
)  # fmt: skip
def test_settings_that_do_not_change_the_trajectory(override: str) -> None:
    resolved = resolve(tiny(), 2)
    assert trajectory(apply_overrides(resolved, [override])) == trajectory(resolved)


@pytest.mark.parametrize(
    "override",
    [
        "threads.blas=2", "micro_batch=1", "lanes=1", "delay=1", "seed=1", "batch_size=24", "optimizer.lr=2e-3",
        "gradient_accumulation_steps=2", "optimizer.clip=0.5", "model.layers=2", "schedule.kind=linear",
        "schedule.warmup=3", "schedule.min_lr=1e-5", "schedule.decay_steps=9", "data.train_fraction=0.8",
        "precision=bf16",
    ],
)  # fmt: skip
def test_settings_that_change_the_trajectory_are_named(override: str) -> None:
    resolved = resolve(tiny(), 2)
    changed = apply_overrides(resolved, [override])
    differences = trajectory_differences(trajectory(resolved), trajectory(changed))
    key = override.partition("=")[0]
    assert key in differences
    assert differences[key] == (trajectory(resolved)[key], trajectory(changed)[key])
    if key != "schedule.kind":
        assert list(differences) == [key]


def test_the_second_warm_up_of_a_grown_run_is_part_of_its_trajectory() -> None:
    plain = trajectory(resolve(tiny(), 2))
    grown = ["grown_from=x", "schedule.rewarm=3", "schedule.rewarm_from=4"]
    differences = trajectory_differences(plain, trajectory(apply_overrides(resolve(tiny(), 2), grown)))
    assert differences == {
        "grown_from": (None, "x"), "schedule.rewarm": (None, 3), "schedule.rewarm_from": (None, 4)
    }  # fmt: skip


def test_the_warm_up_of_the_sequence_length_is_part_of_the_trajectory() -> None:
    plain, changed = resolve(tiny(), 2), ["schedule.context_warmup=3", "schedule.context_start=1"]
    assert trajectory_differences(trajectory(plain), trajectory(apply_overrides(plain, changed))) == {
        "schedule.context_warmup": (None, 3), "schedule.context_start": (None, 1)
    }  # fmt: skip


def test_steps_change_the_trajectory_only_through_decay_steps() -> None:
    constant = tiny(schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT))
    assert trajectory(resolve(constant, 2)) == trajectory(resolve(apply_overrides(constant, ["steps=99"]), 2))
    short, longer = (trajectory(resolve(tiny(steps=steps), 2)) for steps in (10, 99))
    assert trajectory_differences(short, longer) == {"schedule.decay_steps": (10, 99)}


def test_a_trajectory_is_json_and_identifies_the_text_by_its_checksum() -> None:
    picked = trajectory(resolve(tiny(), 2), "abc")
    assert picked["model.architecture"] == "gpt2"
    assert json.loads(json.dumps(picked)) == picked
    assert trajectory_differences(picked, {**picked, "data.text_sha256": "d"}) == {"data.text_sha256": ("abc", "d")}
