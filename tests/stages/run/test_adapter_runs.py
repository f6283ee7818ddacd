"""Runs with adapters: what their checkpoints hold, resuming them, starting from adapters, opening and merging them."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.adapter_folder import write_adapter_folder, write_base
from tests.stages.checkpoint.llama_folder import Tensors
from tests.stages.support import STORY, command, forked, story
from tests.stages.training.test_kill import at_file_operation, at_metrics_line, start_or_resume
from tests.stages.training.test_resume import files
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import BaseModel, Checkpoint, load_merged, load_model
from threadloom.stages.config import Config, ConfigError, ScheduleKind
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.inference import Model
from threadloom.stages.models import huggingface_views, lora_shapes, parameter_shapes
from threadloom.stages.resolve import apply_overrides, load_config, require_initial_model, resolve, with_initial_model
from threadloom.stages.run import saved_config, train
from threadloom.stages.run.resuming import decay_warning
from threadloom.stages.storage import CheckpointError, RunDirectory, RunMode, open_tensors

pytestmark = [pytest.mark.timeout(600), STORY]  # includes minutes of compiling with an empty cache
needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
ADAPTERS = ("lora.rank=3", "lora.alpha=5", 'lora.targets=["q_proj", "up_proj"]', 'lora.save=["norm"]')


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Remove the log configuration of the command line."""
    yield
    logger.remove()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a model of the Llama family with a tokenizer."""
    folder = write_base(tmp_path / "base")
    CharacterTokenizer("\n abcdefghijklmnopqrstuvwxyz").save(folder / "tokenizer.json")
    return folder


def adapted(base: Path, *overrides: str) -> Config:
    """Return the configuration of a run that trains adapters of the model, with a context of 8."""
    common = ("model.context=8", "steps=4", "optimizer.lr=1e-2", "checkpoint.interval=2", *ADAPTERS)
    return apply_overrides(with_initial_model(story(base.parent), base), (*common, *overrides))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Return the texts of the warnings of a test."""
    texts = list[str]()
    handler = logger.add(lambda message: texts.append(message.record["message"]), level="WARNING")
    yield texts
    logger.remove(handler)


def adapters_of(checkpoint: Path) -> Tensors:
    with open_tensors(checkpoint / "adapter_model.safetensors") as file:
        found = {name: np.empty(shape, np.float32) for name, shape in file.shapes.items()}
        for name, tensor in found.items():
            file.read(name, tensor)
    return found


@pytest.mark.parametrize(
    ("precision", "delay"),
    [
        ("float32", 0),
        ("float32", 2),
        pytest.param("bf16", 2, marks=needs_compiler),
        pytest.param("fp16", 0, marks=needs_compiler),
    ],
)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    base: Path, tmp_path: Path, precision: str, delay: int
) -> None:
    settings = (f"delay={delay}", f"precision={precision}", "schedule.decay_steps=6")
    train(adapted(base, *settings, "steps=6"), tmp_path / "whole")
    train(adapted(base, *settings, "steps=3"), tmp_path / "run")
    train(adapted(base, *settings, "steps=6", "threads.forward=2"), tmp_path / "run", RunMode.RESUME)
    assert files(tmp_path / "run", 6) == files(tmp_path / "whole", 6)
    found = adapters_of(RunDirectory(tmp_path / "run").checkpoint(6))
    assert len(found) == 2 * 2 * 2 + 1
    assert all(tensor.any() for tensor in found.values())


def test_a_killed_run_is_resumed_with_the_bits_of_one_that_was_not(base: Path, tmp_path: Path) -> None:
    config = adapted(base, "delay=2", "steps=6")
    train(config, tmp_path / "whole")
    kills = (at_metrics_line(4), at_file_operation(60), lambda: None)
    found = [forked(partial(_prepared, kill, config, tmp_path / "run"), tmp_path / "log.txt") for kill in kills]
    assert found[:2] == [-signal.SIGKILL] * 2, (tmp_path / "log.txt").read_text()[-2000:]
    assert found[2] == 0, (tmp_path / "log.txt").read_text()[-2000:]
    assert files(tmp_path / "run", 6) == files(tmp_path / "whole", 6)


def _prepared(prepare: Callable[[], None], config: Config, out: Path) -> None:
    prepare()
    start_or_resume(config, out)


def test_a_checkpoint_has_the_adapters_and_not_the_model(base: Path, tmp_path: Path) -> None:
    train(adapted(base, "delay=1"), tmp_path / "run")
    folder = RunDirectory(tmp_path / "run").checkpoint(4)
    names = ("adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "tokenizer.json")
    assert {path.name for path in folder.iterdir()} == {*names, "training.json", "versions.safetensors"}
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.base == BaseModel.of(base)
    assert set(checkpoint.base.files) == {"config.json", "model.safetensors"}
    trained = lora_shapes(checkpoint.geometry).keys() | {"normf_weight"}
    with open_tensors(folder / "optimizer.safetensors") as file:
        assert set(file.shapes) == {f"{state}.{name}" for state in ("m", "v", "forecast") for name in trained}
    with open_tensors(folder / "versions.safetensors") as file:
        assert set(file.shapes) == {f"3.{name}" for name in trained}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["modules_to_save"] == ["model.norm"]


def test_a_model_is_opened_with_its_adapters_merged(base: Path, tmp_path: Path) -> None:
    train(adapted(base), tmp_path / "run")
    folder = RunDirectory(tmp_path / "run").checkpoint(4)
    checkpoint = Checkpoint.open(folder)
    trained = Arena(parameter_shapes(checkpoint.geometry))
    checkpoint.read_weights(4, trained)
    scale = np.float32(5 / 3)
    plain = replace(checkpoint.geometry, lora=None)
    original = load_model(base)[1]
    for model in (Model.open(tmp_path / "run"), Model.open(folder)):
        assert (model.geometry, model.step, model.base) == (plain, 4, base)
        weights = model.weights._asdict()
        for layer in range(plain.layers):
            delta = trained["qkv_a"][layer].T @ trained["qkv_b"][layer] * scale
            expected = original["qkv_weight"][layer] + delta
            np.testing.assert_allclose(weights["qkv_weight"][layer], expected, rtol=1e-6, atol=1e-6)
        assert np.array_equal(weights["down_weight"], original["down_weight"])
        assert np.array_equal(weights["normf_weight"], trained["normf_weight"])
    alone = tmp_path / "adapter"  # what one would give to somebody else
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, alone)
    model = Model.open(alone)
    assert (model.geometry.context, model.tokenizer_folder) == (16, base)
    for name, tensor in model.weights._asdict().items():
        np.testing.assert_array_equal(tensor, weights[name])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_merged_model_has_the_context_of_its_model(base: Path, tmp_path: Path, architecture: str) -> None:
    if architecture == "gpt2":
        train(story(tmp_path, "steps=1", "model.context=16"), tmp_path / "gpt2")
        base = RunDirectory(tmp_path / "gpt2").checkpoint(1)
    config = apply_overrides(
        with_initial_model(story(tmp_path), base), ("model.context=8", "steps=1", "lora.rank=2", "optimizer.lr=1e-2")
    )
    train(config, tmp_path / "run")
    assert Model.open(tmp_path / "run").geometry.context == 8
    short, full = Model.open(tmp_path / "run").weights._asdict(), Model.open(tmp_path / "run", full_context=True)
    assert full.geometry.context == 16
    for name, tensor in full.weights._asdict().items():
        if name == "wpe":
            np.testing.assert_array_equal(tensor, load_model(base)[1]["wpe"])
        else:
            np.testing.assert_array_equal(tensor, short[name])
    assert command("merge", tmp_path / "run", tmp_path / "merged").status == 0
    geometry, weights = load_model(tmp_path / "merged")
    assert geometry.context == 16
    for name, tensor in weights.items():
        np.testing.assert_array_equal(tensor, full.weights._asdict()[name])


def test_a_model_that_was_changed_or_moved_is_noticed(base: Path, tmp_path: Path) -> None:
    config = adapted(base)
    train(config, tmp_path / "run")
    longer = msgspec.structs.replace(saved_config(tmp_path / "run"), steps=5)
    moved = base.rename(tmp_path / "moved")
    for attempt in (lambda: train(longer, tmp_path / "run", RunMode.RESUME), lambda: Model.open(tmp_path / "run")):
        with pytest.raises(CheckpointError, match=re.escape(str(base)) + ".*moved, removed or changed.*--base FOLDER"):
            attempt()
    assert Model.open(tmp_path / "run", moved).base == moved
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    base.symlink_to(moved)
    Model.open(tmp_path / "run")
    content[-1] ^= 1
    weights.write_bytes(content)
    for attempt in (lambda: train(longer, tmp_path / "run", RunMode.RESUME), lambda: Model.open(tmp_path / "run")):
        with pytest.raises(CheckpointError, match=r"safetensors: expected SHA-256 .*changed since the run started"):
            attempt()
    weights.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match=r"expected a file of [\d,]+ bytes, got"):
        Model.open(tmp_path / "run")


def test_a_run_is_resumed_with_a_model_that_was_moved(base: Path, tmp_path: Path) -> None:
    config = adapted(base, "schedule.decay_steps=4", "delay=1", "precision=float32")
    train(config, tmp_path / "whole")
    run = tmp_path / "run"
    train(apply_overrides(config, ["steps=2"]), run)
    moved, longer = base.rename(tmp_path / "moved"), msgspec.structs.replace(saved_config(run), steps=4)
    train(longer, run, RunMode.RESUME, base=moved)
    for state in ("adapter_model.safetensors", "optimizer.safetensors", "versions.safetensors"):
        found, expected = (RunDirectory(path).checkpoint(4) / state for path in (run, tmp_path / "whole"))
        assert found.read_bytes() == expected.read_bytes()
    opened = Checkpoint.open(RunDirectory(run).checkpoint(4))
    assert (opened.base_folder, saved_config(run).init) == (moved, str(base))
    again = msgspec.structs.replace(longer, steps=5)
    train(again, run, RunMode.RESUME)  # the run has recorded the place
    assert Model.open(run).step == 5
    changed = shutil.copytree(moved, tmp_path / "changed") / "model.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"changed/model\.safetensors: expected SHA-256"):
        train(msgspec.structs.replace(again, steps=6), run, RunMode.RESUME, base=changed.parent)
    plain = tmp_path / "plain"
    train(story(tmp_path, "steps=1", "schedule.decay_steps=1"), plain)
    with pytest.raises(ConfigError, match="--base: expected a run with adapters"):
        train(story(tmp_path, "steps=2", "schedule.decay_steps=1"), plain, RunMode.RESUME, base=moved)


def test_more_updates_after_the_end_of_a_decay_are_warned_of(base: Path, tmp_path: Path, warnings: list[str]) -> None:
    run = tmp_path / "run"
    train(story(tmp_path, "steps=2", "schedule.kind=linear", "optimizer.lr=1e-2", "schedule.min_lr=1e-4"), run)
    saved = saved_config(run)
    train(msgspec.structs.replace(saved, steps=3), run, RunMode.RESUME)
    (warning,) = [text for text in warnings if "learning rate" in text]
    assert "the updates from 2 to 3 have the learning rate 0.0001, at which the linear schedule" in warning
    assert f"threadloom train --init {run} --out NEW" in warning
    warnings.clear()
    resolved = resolve(saved, 2)
    constant = msgspec.structs.replace(resolved.schedule, kind=ScheduleKind.CONSTANT)
    for changes, steps in (({"steps": 2}, 2), ({"steps": 3}, 3), ({"steps": 3, "schedule": constant}, 2)):
        assert decay_warning(msgspec.structs.replace(resolved, **changes), steps, run) is None


def test_a_run_starts_from_adapters_of_peft(base: Path, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base, lora_dropout=0.0)
    config = with_initial_model(story(tmp_path), folder)
    assert (config.init, config.lora.init, config.data.tokenizer_path) == (str(base), str(folder), str(base))
    assert (config.lora.rank, config.lora.alpha, config.lora.save) == (3, 4.5, ())
    assert config.lora.targets == ("mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")
    still = apply_overrides(config, ("model.context=8", "optimizer.lr=0", "steps=2"))
    train(still, tmp_path / "run")
    found, expected = adapters_of(RunDirectory(tmp_path / "run").checkpoint(2)), adapters_of(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
    merged, opened = load_merged(folder, base), Model.open(tmp_path / "run")
    for name, tensor in huggingface_views(merged[1], merged[0]).items():
        np.testing.assert_array_equal(huggingface_views(opened.weights._asdict(), opened.geometry)[name], tensor)
    assert load_config(folder).lora == config.lora
    again = with_initial_model(story(tmp_path), tmp_path / "run")
    assert again.lora.init == str(RunDirectory(tmp_path / "run").checkpoint(2))


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("lora.rank=4", "lora.rank: expected 3, as in the adapters in"),
        ("lora.alpha=3", "lora.alpha: expected 4.5"),
        ("lora.rslora=true", "lora.rslora: expected false"),
        ('lora.targets=["q_proj"]', r'lora.targets: expected \["mlp.down_proj",'),
        ('lora.save=["norm"]', r'lora.save: expected \[\], as in the adapters in .*got \["norm"\]'),
        ("init=", "lora.rank: expected a run that starts from a model"),
    ],
)
def test_other_settings_than_those_of_the_adapters_are_refused(
    base: Path, tmp_path: Path, override: str, refusal: str
) -> None:
    config = with_initial_model(story(tmp_path), write_adapter_folder(tmp_path / "adapter", base))
    require_initial_model(
        apply_overrides(config, ("lora.dropout=0.1", 'lora.targets=["q_proj", "v_proj", "down_proj"]'))
    )
    with pytest.raises(ConfigError, match=refusal):
        train(apply_overrides(config, ["model.context=8", override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_positions_that_are_saved_are_those_of_the_whole_model(tmp_path: Path) -> None:
    train(story(tmp_path, "steps=1"), tmp_path / "gpt2")
    config = with_initial_model(story(tmp_path), tmp_path / "gpt2")
    settings = ("lora.rank=2", 'lora.save=["wpe"]')
    require_initial_model(apply_overrides(config, settings))
    require_initial_model(apply_overrides(config, ("lora.rank=2", "model.context=5")))
    with pytest.raises(ConfigError, match=r"model.context: expected 8 with wpe in lora.save, got 5"):
        require_initial_model(apply_overrides(config, (*settings, "model.context=5")))


def test_where_the_model_of_adapters_is(base: Path, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", Path("org/name"))
    with pytest.raises(CheckpointError, match=r"got 'org/name', no such folder.*--base"):
        with_initial_model(story(tmp_path), folder)
    assert with_initial_model(story(tmp_path), folder, base).init == str(base)
    with pytest.raises(ConfigError, match="expected a folder with adapters, since --base is the model"):
        with_initial_model(story(tmp_path), base, base)
    with pytest.raises(ConfigError, match="with adapters in PEFT's, or a run directory, got none of them"):
        with_initial_model(load_config("nanogpt-cpu"), tmp_path)


def test_the_command_line_trains_samples_and_merges(base: Path, tmp_path: Path) -> None:
    story(tmp_path)
    common = (f"--text={tmp_path / 'text.txt'}", "--steps=2", "--set=precision=float32", "--set=model.context=8")
    folder = write_adapter_folder(tmp_path / "adapter", Path("org/name"))
    run = tmp_path / "run"
    outcome = command("train", "--init", folder, f"--base={base}", *common, "--no-tuned", "--out", run, "--sample=3")
    assert outcome.status == 0, outcome.err
    written = []
    for number, (program, *options) in enumerate((("export",), ("merge",), ("merge", f"--base={base}"))):
        outcome = command(program, run, tmp_path / str(number), *options)
        assert outcome.status == 0, outcome.err
        written.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert written[0] == written[1] == written[2]
    moved = base.rename(tmp_path / "moved")
    evaluated = [
        command("eval", run, f"--text={tmp_path / 'text.txt'}", *given) for given in ((), (f"--base={moved}",))
    ]
    assert ([found.status for found in evaluated], "--base FOLDER" in evaluated[0].err) == ([1, 0], True)
    assert command("sample", run, "--tokens=2", f"--base={moved}").status == 0
    assert command("export", run, tmp_path / "moved-out", f"--base={moved}").status == 0
    outcome = command("train", "--resume", f"--base={moved}", "--steps=3", "--out", run, "--sample=2", "--no-tuned")
    assert outcome.status == 0, outcome.err
    moved.rename(base)
    outcome = command("sample", tmp_path / "0", f"--base={base}")
    assert (outcome.status, "--base is their model" in outcome.err) == (1, True)
    assert command("merge", folder, tmp_path / "half", f"--base={base}", "--dtype=bf16").status == 0
    assert command("eval", tmp_path / "half", f"--text={tmp_path / 'text.txt'}").status == 0
    outcome = command("merge", base, tmp_path / "none")
    assert (outcome.status, "got a model without adapters" in outcome.err) == (1, True)
    outcome = command("merge", folder, tmp_path / "none")
    assert (outcome.status, "--base" in outcome.err) == (1, True)
    for adapters in (run, folder):
        outcome = command("grow", adapters, "--width=2", "--out", tmp_path / "none")
        assert (outcome.status, f"merge them first, threadloom merge {adapters}" in outcome.err) == (1, True)
    outcome = command("train", "--init", folder, f"--base={base}", "--lora=4", "--out", tmp_path / "none")
    assert (outcome.status, "--lora: expected new adapters, got those in" in outcome.err) == (1, True)
    outcome = command("train", f"--base={base}", "--out", tmp_path / "none")
    assert (outcome.status, "--base is the model of the adapters in --init" in outcome.err) == (2, True)
