"""The command `grow`: the same loss after the growth, the trajectory of the grown run, and refusals."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from tests.reference import Ids
from tests.stages.checkpoint.test_huggingface import random_weights
from tests.stages.models.test_huggingface import GEOMETRY
from tests.stages.support import assert_same, build, command, result, run_sequence, run_threads, story
from tests.stages.training.oracle import Oracle, oracle_of
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.config import ConfigError
from threadloom.stages.machine import Machine, detect
from threadloom.stages.models import Geometry
from threadloom.stages.resolve import resolved_from_json
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import RunMode, open_tensors, read_metrics
from threadloom.stages.tools.grow import growing

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

LLAMA = (
    "model.architecture=llama", "model.layers=2", "model.heads=4", "model.kv_heads=2", "model.head_size=6",
    "model.channels=18", "model.mlp_width=22", "model.tied=false",
)  # fmt: skip
RUNS = {
    "gpt2": ("model.layers=2", "model.channels=18", "model.heads=3"),
    "delayed": ("model.layers=2", "model.channels=18", "model.heads=3", "delay=2", "optimizer.ema=0.6"),
    "llama": LLAMA,
}
STEPS, GROWN = 10, 6


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with finished runs, which have checkpoints after 3, 6, 9 and 10 updates."""
    folder = tmp_path_factory.mktemp("runs")
    common = (f"steps={STEPS}", "checkpoint.interval=3", "checkpoint.keep=0", "evaluation.interval=3")
    for name, settings in RUNS.items():
        train(story(folder, *common, *settings, "schedule.warmup=2", "pictures=false"), folder / name)
    return folder


def checkpoint(run: Path, step: int = GROWN) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def resume(run: Path, *overrides: str) -> None:
    done = command("train", "--resume", "--out", run, "--sample=0", *(f"--set={setting}" for setting in overrides))
    assert done.status == 0, done.err


def records(run: Path, key: str) -> dict[int, float]:
    return {record["step"]: record[key] for record in read_metrics(run / "metrics.jsonl") if key in record}


def logits(folder: Path, run: Path, ids: Ids) -> np.ndarray:
    """Return the logits of a checkpoint's newest weights, by the float64 reference."""
    opened = Checkpoint.open(folder)
    weights = {name: tensor.astype(np.float64) for name, tensor in opened.read_model()[1].items()}
    found: np.ndarray = of_run(run).forward(weights, ids).logits
    return found


def of_run(run: Path) -> Oracle:
    return oracle_of(resolved_from_json((run / "config.json").read_bytes()))


def files(run: Path, step: int = STEPS) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint(run, step).glob("*.safetensors")}


@pytest.mark.parametrize("name", RUNS)
def test_a_grown_run_has_the_same_logits_and_loss_and_continues(name: str, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    done = command("grow", checkpoint(runs / name), "--width", "2", "--depth", "+1", "--where=even", "--out", out)
    assert done.status == 0, done.err
    assert f"to continue: threadloom train --resume --out {out}" in done.out
    config, small = saved_config(out), saved_config(runs / name)
    assert (config.model.channels, config.model.layers, config.steps, config.seed) == (36, 3, STEPS, small.seed)
    assert config.grown_from.startswith(str(checkpoint(runs / name)))
    assert "width 2, depth +1 (even), noise 0.01, moments: carry" in config.grown_from
    assert (config.schedule.rewarm, config.schedule.rewarm_from) == ((STEPS - GROWN) // 2, GROWN)

    ids = np.random.default_rng(1).integers(0, config.model.vocab_size or 1, (2, config.model.context))
    expected = logits(checkpoint(runs / name), runs / name, ids)
    found = logits(checkpoint(out), out, ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())

    resume(out)
    assert records(out, "val_loss")[GROWN] == pytest.approx(records(runs / name, "val_loss")[GROWN], rel=1e-6)
    rates, planned = records(out, "lr"), records(runs / name, "lr")
    factors = [rates[step] / planned[step] for step in range(GROWN + 1, STEPS + 1)]
    np.testing.assert_allclose(factors, [1 / 3, 2 / 3, 1, 1])


def test_batches_and_versions_in_flight_go_on(runs: Path, tmp_path: Path) -> None:
    """With τ = 2, the next three batches read forecasts that the small run has written: their losses are its losses."""
    small, out = runs / "delayed", tmp_path / "grown"
    assert command("grow", checkpoint(small), "--width=3", "--out", out).status == 0
    resume(out)
    expected, found = records(small, "loss"), records(out, "loss")
    assert list(found) == list(range(GROWN + 1, STEPS + 1))
    for step in range(GROWN + 1, GROWN + 4):
        assert found[step] == pytest.approx(expected[step], rel=1e-6)
    assert found[STEPS] != pytest.approx(expected[STEPS], rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "delayed"])
def test_a_grown_run_has_the_same_bits_with_other_threads_and_in_parts(name: str, runs: Path, tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for out in (parts, whole):
        assert command("grow", checkpoint(runs / name), "--width=2", "--seed=3", "--out", out).status == 0
    assert files(parts, GROWN) == files(whole, GROWN)
    resume(whole, "threads.forward=3", "threads.backward=2", "threads.update=2")
    resume(parts, f"steps={GROWN + 1}", "threads.forward=1", "threads.backward=1")
    resume(parts, f"steps={STEPS}")
    assert files(parts) == files(whole)

    config, start = resolved_from_json((parts / "config.json").read_bytes()), Checkpoint.open(checkpoint(parts))
    threads, sequence = build(config, start=start), build(config, start=start)
    assert_same(result(threads, run_threads(threads)), result(sequence, run_sequence(sequence)))


def test_moments_are_carried_or_zero(runs: Path, tmp_path: Path) -> None:
    def moments(folder: Path) -> dict[str, np.ndarray]:
        with open_tensors(checkpoint(folder) / "optimizer.safetensors") as file:
            found = {name: np.empty(shape, np.float32) for name, shape in file.shapes.items()}
            for name, tensor in found.items():
                file.read(name, tensor)
        return found

    for kind in ("carry", "zero"):
        out = tmp_path / kind
        done = command(
            "grow", checkpoint(runs / "delayed"), "--width=2", "--depth=1", f"--moments={kind}", "--out", out
        )
        assert done.status == 0, done.err
    small, carried, zero = (moments(folder) for folder in (runs / "delayed", tmp_path / "carry", tmp_path / "zero"))
    np.testing.assert_array_equal(carried["m.wte"], np.tile(small["m.wte"] / 2, 2))
    np.testing.assert_array_equal(carried["v.wte"], np.tile(small["v.wte"] / 4, 2))
    np.testing.assert_array_equal(carried["m.lnf_bias"], np.tile(small["m.lnf_bias"], 2))
    fc = small["v.fc_weight"] / 4
    np.testing.assert_array_equal(carried["v.fc_weight"][:2], np.block([[fc, fc], [fc, fc]]))
    assert not carried["m.fc_weight"][2].any()
    for name, tensor in zero.items():
        assert tensor.any() == name.startswith(("forecast.", "ema.")), name
    np.testing.assert_array_equal(zero["forecast.fc_weight"], carried["forecast.fc_weight"])


def test_settings_change_with_the_growth_and_not_after(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    done = command("grow", runs / "gpt2", "--depth", "2", "--steps=14", "--rewarm=0", "--set=optimizer.lr=5e-4",
                   "--out", out)  # fmt: skip
    assert done.status == 0, done.err
    config = saved_config(out)
    assert (config.steps, config.schedule.decay_steps, config.optimizer.lr) == (14, 14, 5e-4)
    assert (config.schedule.rewarm, config.schedule.rewarm_from) == (0, 0)
    again = command("grow", out, "--width=2", "--out", tmp_path / "again")
    assert again.status == 0, again.err
    twice = saved_config(tmp_path / "again")
    assert (twice.model.channels, twice.model.layers, twice.optimizer.lr) == (36, 4, 5e-4)
    assert (twice.schedule.rewarm, twice.schedule.rewarm_from) == (2, STEPS)
    assert twice.grown_from.startswith(str(checkpoint(out, STEPS)))
    command("train", "--resume", "--out", out, "--set=schedule.rewarm=3").refuses("schedule.rewarm")
    command("train", "--config", out, "--out", tmp_path / "new").refuses("grown_from", "--init RUN")
    for step in (out / "checkpoints").iterdir():
        step.rename(tmp_path / step.name)
    with pytest.raises(ConfigError, match="grow the run again"):
        train(config, out, RunMode.RESUME)


def test_a_model_folder_is_grown(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", random_weights(), GEOMETRY)
    done = command("grow", tmp_path / "model", "--width=2", "--noise=0.1")
    assert done.status == 0, done.err
    assert f"threadloom train --init {tmp_path / 'model-grown'}" in done.out
    geometry, weights = load_model(tmp_path / "model-grown")
    assert geometry == Geometry(vocabulary=37, context=11, layers=3, heads=6, channels=24)
    np.testing.assert_array_equal(weights["wte"], np.tile(random_weights()["wte"], 2))
    assert json.loads((tmp_path / "model-grown" / "config.json").read_text())["n_head"] == 6
    again = command("grow", tmp_path / "model", "--width=2")
    again.refuses("a directory with files")
    command("grow", tmp_path / "model", "--width=2", "--set=steps=3", "--out", tmp_path / "x").refuses("train --init")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--width", "1.5"], ("--width: expected an integer from 1 to 64, got 1.5", "whole copies", "--width 2")),
        (["--width", "0"], ("--width: expected an integer",)),
        (["--width", "65"], ("--width: expected an integer",)),
        (["--depth", "-1"], ("--depth: expected the number of layers to insert", "a model only grows")),
        ([], ("expected a growth", "--depth +2")),
        (["--width", "2", "--set", "delay=1"], ("delay: expected a setting that a run can change", "train --init")),
        (["--width", "2", "--set", "model.layers=9"], ("model.layers: expected a setting",)),
        (["--width", "2"], ("steps: expected more than the 10 updates", "--steps 20")),
        (["--width", "2", "--steps", "12", "--set", "optimizer.lr=no"], ("optimizer.lr: expected a number",)),
    ],
)
def test_growths_without_meaning_are_refused(
    arguments: list[str], words: tuple[str, ...], runs: Path, tmp_path: Path
) -> None:
    command("grow", runs / "gpt2", *arguments, "--out", tmp_path / "out").refuses(*words)
    assert not (tmp_path / "out").exists()


def test_a_run_with_rotated_bases_does_not_grow(tmp_path: Path) -> None:
    settings = ("steps=1", "optimizer.rotation=2", "pictures=false", "model.channels=18", "model.heads=3")
    train(story(tmp_path, *settings), tmp_path / "run")
    grown = command("grow", tmp_path / "run", "--width", "2", "--steps", "9", "--out", tmp_path / "out")
    grown.refuses("optimizer.rotation: expected 0, in a run that grows", "train --init")
    assert not (tmp_path / "out").exists()


def test_paths_without_a_model_are_refused(runs: Path, tmp_path: Path) -> None:
    command("grow", tmp_path / "none", "--width=2").refuses("no such folder")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "metrics.jsonl").touch()
    command("grow", tmp_path / "begun", "--width=2").refuses("a run without a checkpoint", "wait")
    command("grow", checkpoint(runs / "gpt2"), "--width=2", "--out", runs / "llama").refuses("a directory with files")


def test_a_grown_run_that_does_not_fit_into_memory_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_machine() -> Machine:
        return replace(detect(), memory_available=1_000_000)

    monkeypatch.setattr(growing, "detect", small_machine)
    arguments = ("grow", checkpoint(runs / "gpt2"), "--width=2", "--out", tmp_path / "out")
    command(*arguments).refuses("fits into the 1 MB of memory", "--force")
    assert command(*arguments, "--force").status == 0
