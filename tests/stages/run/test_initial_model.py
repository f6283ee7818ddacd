"""Runs that start from the weights of a model: of its sizes, with its tokenizer, and resumed without its folder."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.llama_folder import CONFIG, tensors_of, write_folder
from tests.stages.support import STORY, command, story
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.config import CheckpointConfig, Config, ConfigError, TokenizerKind
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.models import parameter_shapes
from threadloom.stages.resolve import apply_overrides, load_config, require_initial_model, with_initial_model
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import CONFIG_FILE, CheckpointError, RunDirectory, RunMode

pytestmark = [pytest.mark.timeout(600), STORY]  # includes minutes of compiling with an empty cache
STILL = ("optimizer.lr=0", "steps=2", "checkpoint.interval=1")
"""Settings of a run whose weights do not change."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Remove the log configuration of the command line."""
    yield
    logger.remove()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the text and `run`, a run of GPT-2."""
    folder = tmp_path_factory.mktemp("finished")
    train(story(folder, "steps=3"), folder / "run")
    return folder


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the last checkpoint, which is a folder in Hugging Face's layout with the model's tokenizer."""
    return shutil.copytree(RunDirectory(finished / "run").checkpoint(3), tmp_path / "model")


def weights_after(run: Path, step: int) -> Arena:
    checkpoint = Checkpoint.open(RunDirectory(run).checkpoint(step))
    arena = Arena(parameter_shapes(checkpoint.geometry))
    checkpoint.read_weights(step, arena)
    return arena


def continued(finished: Path, model: Path, *overrides: str) -> Config:
    """Return the configuration of a run that starts from the model, on the same text."""
    return apply_overrides(with_initial_model(story(finished), model), (*STILL, *overrides))


def test_a_run_starts_from_the_weights_of_the_model(finished: Path, model: Path, tmp_path: Path) -> None:
    config = continued(finished, model)
    assert config.data.tokenizer is TokenizerKind.PRETRAINED
    train(config, tmp_path / "run")
    np.testing.assert_array_equal(weights_after(tmp_path / "run", 2).flat, load_model(model)[1].flat)
    assert saved_config(tmp_path / "run").init == str(model)


def test_a_run_starts_from_a_llama_with_more_rows_than_tokens(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    folder = write_folder(tmp_path / "llama", CONFIG, tensors_of(CONFIG))
    CharacterTokenizer("\n abcdefghijklmnopqrstuvwxyz").save(folder / "tokenizer.json")
    config = apply_overrides(with_initial_model(story(tmp_path), folder), (*STILL, "model.context=8"))
    train(config, tmp_path / "run")
    np.testing.assert_array_equal(weights_after(tmp_path / "run", 2).flat, load_model(folder)[1].flat)


def test_what_came_with_a_model_is_in_the_checkpoints_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "mistral").mkdir()
    config = CONFIG | {"model_type": "mistral", "eos_token_id": [0, 3], "sliding_window": 16, "note": "of its makers"}
    folder = write_folder(tmp_path / "mistral", config, tensors_of(config))
    CharacterTokenizer("\n abcdefghijklmnopqrstuvwxyz").save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    train(apply_overrides(with_initial_model(story(tmp_path), folder), (*STILL, "model.context=8")), tmp_path / "run")
    shutil.rmtree(folder)
    changes = {"steps": 3, "checkpoint": CheckpointConfig(interval=1, keep=0)}
    train(msgspec.structs.replace(saved_config(tmp_path / "run"), **changes), tmp_path / "run", RunMode.RESUME)
    checkpoint = RunDirectory(tmp_path / "run").checkpoint(3)
    found = json.loads((checkpoint / CONFIG_FILE).read_text())
    assert found["max_position_embeddings"] == 8
    assert [found[key] for key in ("model_type", "eos_token_id", "sliding_window", "note")] == [
        "mistral", [0, 3], None, "of its makers",
    ]  # fmt: skip
    assert json.loads((checkpoint / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    assert (checkpoint / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
    again = with_initial_model(story(tmp_path), checkpoint)
    train(apply_overrides(again, STILL), tmp_path / "again")
    assert json.loads((RunDirectory(tmp_path / "again").checkpoint(2) / CONFIG_FILE).read_text()) == found


def test_a_run_directory_is_a_model_too(finished: Path, tmp_path: Path) -> None:
    config = with_initial_model(story(tmp_path), finished / "run")
    assert config.init == str(RunDirectory(finished / "run").checkpoint(3))


def test_a_shorter_context_takes_the_first_positions(finished: Path, model: Path, tmp_path: Path) -> None:
    train(continued(finished, model, "model.context=5"), tmp_path / "run")
    found, whole = weights_after(tmp_path / "run", 2), load_model(model)[1]
    np.testing.assert_array_equal(found["wpe"], whole["wpe"][:5])
    np.testing.assert_array_equal(found["fc_weight"], whole["fc_weight"])


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("model.context=9", "model.context: expected at most 8, as in the model in"),
        ("model.layers=2", "model.layers: expected 1, as in the model in"),
        ("model.channels=32", "model.channels: expected 16, as in the model in"),
        ("model.vocab_size=99", "model.vocab_size: expected 14, as in the model in"),
        ("model.architecture=llama", 'model.architecture: expected "gpt2", as in the model in'),
    ],
)
def test_other_sizes_than_those_of_the_model_are_refused(
    finished: Path, model: Path, tmp_path: Path, override: str, refusal: str
) -> None:
    with pytest.raises(ConfigError, match=refusal):
        train(continued(finished, model, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_open_vocabulary_is_that_of_the_model(finished: Path, model: Path) -> None:
    require_initial_model(continued(finished, model, "model.vocab_size=null", "model.residual_scaling=false"))


def test_a_run_is_resumed_without_the_folder(finished: Path, model: Path, tmp_path: Path) -> None:
    config = continued(finished, model)
    train(config, tmp_path / "run")
    expected = load_model(model)[1]
    shutil.rmtree(model)
    train(msgspec.structs.replace(saved_config(tmp_path / "run"), steps=3), tmp_path / "run", RunMode.RESUME)
    np.testing.assert_array_equal(weights_after(tmp_path / "run", 3).flat, expected.flat)


def test_a_model_that_was_removed_before_the_run_starts_is_an_error(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    config = continued(finished, model)
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(model))):
        train(config, tmp_path / "run")
    shutil.rmtree(model)
    with pytest.raises(CheckpointError, match=re.escape(str(model))):
        train(config, tmp_path / "other")


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer |= {"alphabet": tokenizer["alphabet"] + "é", "size": tokenizer["size"] + 1}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ConfigError, match=r"model\.vocab_size: expected at least the 15 tokens of the tokenizer, got 14"
    ):
        train(continued(finished, model), tmp_path / "run")


def test_the_folder_of_a_model_is_a_configuration_for_fine_tuning(model: Path) -> None:
    config = load_config(model)
    assert (config.init, config.model.context, config.model.vocab_size) == (str(model), 8, 14)
    assert config.optimizer.lr == 2e-3
    require_initial_model(config)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="expected a folder with a model in Hugging Face's layout"):
            with_initial_model(load_config("nanogpt-cpu"), path)


def test_the_command_line_fine_tunes_samples_and_scores(finished: Path, model: Path, tmp_path: Path) -> None:
    common = ("--text", finished / "text.txt", "--steps=2", "--set=precision=float32", "--no-tuned")
    outcome = command("train", "--init", model, *common, "--out", tmp_path / "run", "--sample=3")
    assert outcome.status == 0, outcome.err
    saved = saved_config(tmp_path / "run")
    assert (saved.init, saved.optimizer.lr, saved.batch_size) == (str(model), 2e-3, 8)
    outcome = command("train", "--init", model, "--config=small", *common, "--out", tmp_path / "other", "--sample=0")
    assert outcome.status == 0, outcome.err
    assert saved_config(tmp_path / "other").batch_size == load_config("small").batch_size
    outcome = command("train", "--init", model, "--resume", "--out", tmp_path / "run")
    assert (outcome.status, "omit --init" in outcome.err) == (2, True)
    outcome = command("train", "--init", model, "--out", tmp_path / "none", "--set=model.layers=4", *common)
    assert (outcome.status, "model.layers: expected 1" in outcome.err) == (1, True)


def test_a_prepared_text_has_the_tokenizer_of_the_model_or_is_refused(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    """The model is that of a run, which is given as a run and as a folder."""
    text = ("--text", finished / "text.txt")
    for name, tokenizer in (("same", ("--tokenizer", model)), ("other", ("--set=data.tokenizer=bytes",))):
        assert command("prepare", *text, *tokenizer, "--out", tmp_path / name).status == 0
    common = ("--steps=1", "--set=precision=float32", "--no-tuned", "--sample=0")
    for number, init in enumerate((model, finished / "run")):
        out = tmp_path / f"run{number}"
        outcome = command("train", "--data", tmp_path / "same", "--init", init, *common, "--out", out)
        assert outcome.status == 0, outcome.err
        config, checkpoint = saved_config(out), RunDirectory(out).checkpoint(1)
        assert (config.data.tokenizer, config.model.vocab_size) == (TokenizerKind.PRETRAINED, 14)
        assert (checkpoint / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
        outcome = command("train", "--data", tmp_path / "other", "--init", init, *common, "--out", tmp_path / "none")
        assert (outcome.status, (tmp_path / "none").exists()) == (1, False)
        assert re.search(r"data\.prepared: expected a text prepared with the tokenizer of .*--tokenizer", outcome.err)
