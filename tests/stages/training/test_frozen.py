"""Runs that train some tensors: the others keep their bits, and take neither gradients nor moments nor lanes."""

from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import (
    LLAMA,
    TINY,
    Result,
    assert_same,
    build,
    planned,
    result,
    run_sequence,
    run_threads,
    tiny,
)
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import arena_size
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config
from threadloom.stages.layouts import layout_of
from threadloom.stages.models import parameter_shapes
from threadloom.stages.storage import open_tensors
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

GPT2_FREEZE = 'train.freeze=["wte", "wpe", "fc_*", "ln1_*", "lnf_bias", "attn_proj_bias"]'
LLAMA_FREEZE = 'train.freeze=["wte", "gate_up_*", "norm1_weight", "q_norm_weight", "attn_proj_bias"]'
needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits takes minutes without the compiler")
PRECISIONS = ["float32", *(pytest.param(name, marks=needs_compiler) for name in ("bf16", "fp16"))]
MODELS = [pytest.param(TINY, GPT2_FREEZE, id="gpt2"), pytest.param(LLAMA, LLAMA_FREEZE, id="llama")]
SELECTIONS = [
    *MODELS,
    pytest.param(TINY, 'train.only=["wte"]', id="gpt2 token embedding"),
    pytest.param(TINY, 'train.freeze=["*weight"]', id="gpt2 biases"),
    pytest.param(LLAMA, 'train.only=["lm_head.weight"]', id="llama output projection"),
    pytest.param(LLAMA, 'train.freeze=["*weight"]', id="llama biases"),
]


def newest(training: Training) -> dict[str, np.ndarray]:
    with training.banks.lease(training.config.steps) as lease:
        return {name: tensor.copy() for name, tensor in lease.bank.tensors.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("base", "freeze"), SELECTIONS)
def test_frozen_tensors_keep_their_bits_and_the_others_get_those_of_a_run_that_trains_all(
    precision: str, base: Config, freeze: str
) -> None:
    """After one update without clipping: AdamW is element-wise, and no gradient depends on another one."""
    common = (f"precision={precision}", "steps=1", "optimizer.clip=0", "schedule.warmup=0", "loss_scale.kind=none")
    whole, part = build(tiny(*common, base=base)), build(tiny(*common, freeze, base=base))
    with whole.banks.lease(0) as lease:
        initial = {name: tensor.copy() for name, tensor in lease.bank.tensors.items()}
    run_sequence(whole)
    run_sequence(part)
    with part.banks.lease(1) as lease:
        names = set(lease.bank.arena)
    assert names
    assert set(initial) - names
    found, complete = newest(part), newest(whole)
    for name, tensor in found.items():
        expected = complete[name] if name in names else initial[name]
        np.testing.assert_array_equal(tensor, expected, err_msg=name)
        assert (name in names) == (not np.array_equal(tensor, initial[name])), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("base", "freeze"), MODELS)
@pytest.mark.parametrize("settings", [("delay=0",), ("delay=2",), ("delay=1", "shared_lanes=true")], ids=str)
def test_the_pipeline_and_a_resumed_run_have_the_bits_of_the_replay(
    precision: str, base: Config, freeze: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    common = (f"precision={precision}", "checkpoint.interval=3", "checkpoint.keep=0")
    config = tiny(freeze, *common, *settings, base=base)
    replayed = build(config)
    expected = result(replayed, run_sequence(replayed))
    whole = build(config, tmp_path)
    found = result(whole, run_threads(whole))
    assert_same(found, Result(expected.tensors, expected.updates, (), saved=found.saved))
    resumed = build(config, start=Checkpoint.open(tmp_path / "step-000003"))
    assert_same(result(resumed, run_threads(resumed)), Result(expected.tensors, expected.updates[3:], (), saved=()))
    for name, tensor in newest(resumed).items():
        np.testing.assert_array_equal(tensor, newest(whole)[name], err_msg=name)


@pytest.mark.parametrize(("correction", "states"), [("none", ("m", "v")), ("forecast_lead", ("m", "v", "forecast"))])
def test_frozen_tensors_have_no_moments_in_a_checkpoint_and_are_saved_once(
    correction: str, states: tuple[str, ...], tmp_path: Path
) -> None:
    config = tiny(GPT2_FREEZE, "delay=2", f"delay_correction={correction}")
    training = build(config, tmp_path)
    run_threads(training)
    trained = parameter_shapes(config.model.geometry(), config.frozen_tensors())
    folder = tmp_path / f"step-{config.steps:06d}"
    with open_tensors(folder / "optimizer.safetensors") as file:
        assert set(file.shapes) == {f"{state}.{name}" for state in states for name in trained}
    with open_tensors(folder / "versions.safetensors") as file:
        older = (config.steps - 2, config.steps - 1)
        assert set(file.shapes) == {f"{version}.{name}" for version in older for name in trained}
    with open_tensors(folder / "model.safetensors") as file:
        assert "transformer.wte.weight" in file.shapes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_has_lanes_and_moments_for_trained_tensors_alone(precision: str) -> None:
    """`Training` compares the plan with what it allocates."""
    config = tiny('train.only=["lnf_*"]', f"precision={precision}", "delay=1")  # banks of forecasts
    plan = planned(config)
    trained = 4 * arena_size(parameter_shapes(config.model.geometry(), config.frozen_tensors()))
    banks = config.delay + 1 + config.extra_banks
    assert plan["weight banks"] == trained * banks
    assert plan["optimizer state"] == 3 * trained
    assert plan["gradient lanes"] == config.lanes * trained
    assert plan["frozen weights"] > 4 * 13 * 15
    build(config)


@pytest.mark.parametrize(
    ("base", "trained", "needed"),
    [
        (LLAMA, 'train.only=["head"]', False),
        (LLAMA, 'train.only=["head", "normf_weight"]', False),
        (LLAMA, 'train.only=["wte"]', True),
        (LLAMA, 'train.only=["norm1_weight"]', True),
        (TINY, 'train.only=["lnf_*"]', False),
        (TINY, 'train.only=["wte"]', True),
    ],
)
def test_the_backward_pass_ends_at_the_head_if_nothing_below_is_trained(
    base: Config, trained: str, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = build(tiny(trained, "shared_lanes=true", "threads.backward=2", "steps=2", base=base))
    calls = []
    kernels = layout_of(training.config.geometry()).kernels
    monkeypatch.setattr(kernels, "blocks_backward", lambda *arguments: calls.append(1))
    run_threads(training)
    assert bool(calls) == needed
