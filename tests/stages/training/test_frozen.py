"""Runs that train some tensors: the others keep their bits, and take neither gradients nor moments nor lanes."""

from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import Result, assert_same, build, planned, result, run_sequence, run_threads, tiny
from threadloom.pipeline import arena_size
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.models import parameter_shapes
from threadloom.stages.storage import open_tensors
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(120)  # the first run compiles kernels

FREEZE = 'train.freeze=["wte", "wpe", "fc_*", "ln1_*", "lnf_bias", "attn_proj_bias"]'
PRECISIONS = ("float32", "bf16", "fp16")


def newest(training: Training) -> dict[str, np.ndarray]:
    with training.banks.lease(training.config.steps) as lease:
        return {name: tensor.copy() for name, tensor in lease.bank.tensors.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("freeze", [FREEZE, 'train.only=["wte"]', 'train.freeze=["*weight"]'])
def test_frozen_tensors_keep_their_bits_and_the_others_get_those_of_a_run_that_trains_all(
    precision: str, freeze: str
) -> None:
    """After one update without clipping: AdamW is element-wise, and no gradient depends on another one."""
    common = (f"precision={precision}", "steps=1", "optimizer.clip=0", "schedule.warmup=0", "loss_scale.kind=none")
    whole, part = build(tiny(*common)), build(tiny(*common, freeze))
    with whole.banks.lease(0) as lease:
        initial = {name: tensor.copy() for name, tensor in lease.bank.tensors.items()}
    run_sequence(whole)
    run_sequence(part)
    trained = part.banks
    with trained.lease(1) as lease:
        names = set(lease.bank.arena)
    assert names
    assert set(initial) - names
    for name, tensor in newest(part).items():
        expected = newest(whole)[name] if name in names else initial[name]
        np.testing.assert_array_equal(tensor, expected, err_msg=name)
        assert (name in names) == (not np.array_equal(tensor, initial[name])), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("settings", [("delay=0",), ("delay=2",), ("delay=1", "shared_lanes=true")], ids=str)
def test_the_pipeline_and_a_resumed_run_have_the_bits_of_the_replay(
    precision: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    config = tiny(FREEZE, f"precision={precision}", *settings, "checkpoint.interval=3", "checkpoint.keep=0")
    replayed = build(config)
    expected = result(replayed, run_sequence(replayed))
    whole = build(config, tmp_path)
    found = result(whole, run_threads(whole))
    assert_same(found, Result(expected.tensors, expected.updates, (), saved=found.saved))
    resumed = build(config, start=Checkpoint.open(tmp_path / "step-000003"))
    assert_same(result(resumed, run_threads(resumed)), Result(expected.tensors, expected.updates[3:], (), saved=()))
    for name, tensor in newest(resumed).items():
        np.testing.assert_array_equal(tensor, newest(whole)[name], err_msg=name)


def test_frozen_tensors_have_no_moments_in_a_checkpoint_and_are_saved_once(tmp_path: Path) -> None:
    config = tiny(FREEZE, "delay=2")
    training = build(config, tmp_path)
    run_threads(training)
    trained = parameter_shapes(config.model.geometry(), config.frozen_tensors())
    folder = tmp_path / f"step-{config.steps:06d}"
    with open_tensors(folder / "optimizer.safetensors") as file:
        assert set(file.shapes) == {f"{state}.{name}" for state in "mv" for name in trained}
    with open_tensors(folder / "versions.safetensors") as file:
        older = (config.steps - 2, config.steps - 1)
        assert set(file.shapes) == {f"{version}.{name}" for version in older for name in trained}
    with open_tensors(folder / "model.safetensors") as file:
        assert "transformer.wte.weight" in file.shapes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_has_lanes_and_moments_for_trained_tensors_alone(precision: str) -> None:
    """`Training` compares the plan with what it allocates."""
    config = tiny('train.only=["lnf_*"]', f"precision={precision}", "delay=1")
    plan = planned(config)
    trained = 4 * arena_size(parameter_shapes(config.model.geometry(), config.frozen_tensors()))
    banks = config.delay + 1 + config.extra_banks
    assert plan["weight banks"] == trained * banks
    assert plan["optimizer moments"] == 2 * trained
    assert plan["gradient lanes"] == config.lanes * trained
    assert plan["frozen weights"] > 4 * 13 * 15
    build(config)
