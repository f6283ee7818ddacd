"""The examples with models of the Llama family run with tiny sizes; the configuration `llama-small` trains."""

import ast
import re
from pathlib import Path

import msgspec
import pytest
from loguru import logger

from examples import fine_tune, train_llama
from tests.stages.support import STORY, command, fastest_in_float32
from threadloom.stages.config import DataConfig, LlamaConfig, TokenizerKind
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import finished_checkpoints

pytestmark = [pytest.mark.timeout(300), STORY]  # the first run compiles kernels

TINY = msgspec.structs.replace(
    fine_tune.TINY_LLAMA,
    name="tiny",
    model=LlamaConfig(context=16, layers=1, heads=2, kv_heads=1, channels=16, tied=True),
    data=DataConfig(tokenizer=TokenizerKind.BYTES),
    steps=20,
)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest_in_float32(tmp_path / "cache", monkeypatch)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven " * 60)
    return file


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text in place of the source of the standard library."""
    file = tmp_path / "source.py"
    file.write_text("def one():\n    return 1\n" * 100)

    def short() -> Text:
        return read_text([file])

    monkeypatch.setattr("threadloom.stages.data.text_reading.standard_library_text", short)


@pytest.mark.usefixtures("source")
def test_a_model_made_on_the_spot_learns_a_text(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = fine_tune.main([str(text)], steps=30, prompt="on", pretraining=TINY)
    assert after < before
    shown = capsys.readouterr().out
    assert re.findall(r"^--- (\w+): ", shown, re.MULTILINE) == ["before", "after"]
    assert len(re.findall(r"^on", shown, re.MULTILINE)) == 2


@pytest.mark.usefixtures("source")
def test_adapters_of_a_model_made_on_the_spot_learn_a_text(text: Path) -> None:
    before, after = fine_tune.main([str(text)], steps=30, lora=4, prompt="on", pretraining=TINY)
    assert after < before


@pytest.mark.usefixtures("source")
def test_a_model_that_exists_is_fine_tuned(text: Path, tmp_path: Path) -> None:
    model = train(TINY, tmp_path / "run").run.path
    checkpoint = finished_checkpoints(model / "checkpoints")[-1]
    losses = [fine_tune.main([str(text)], folder, steps=2, prompt="on") for folder in (model, checkpoint)]
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("source")
def test_training_from_nothing_in_twenty_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = train_llama.main(3, str(tmp_path / "run"), TINY)
    assert f"validation loss {loss:.4f} after 3 updates" in capsys.readouterr().out
    assert saved_config(tmp_path / "run").steps == 3
    body = ast.parse(Path(train_llama.__file__).read_text(encoding="utf-8")).body[1:]
    assert sum(node.end_lineno - node.lineno + 1 for node in body if node.end_lineno is not None) <= 20


def test_the_command_trains_llama_small_for_a_number_of_steps(text: Path, tmp_path: Path) -> None:
    """The shipped configuration, with shorter sequences."""
    changes = ("batch_size=1", "model.context=16", "evaluation.final_batches=1", "pictures=false")
    settings = [f"--set={change}" for change in changes]
    where = ("--text", text, "--out", tmp_path / "run")
    done = command("train", "--config", "llama-small", "--steps", 2, "--sample", 0, *settings, *where)
    assert done.status == 0, done.err
    assert "after 2 updates" in done.out
    logger.remove()
