"""The examples run with tiny sizes and print the expected results."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from examples import custom_stage, sample, train_from_python, word_count
from threadloom.stages.config import CheckpointConfig, Config, EvaluationConfig, Gpt2Config
from threadloom.stages.data.batches import RandomTokens
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training

TINY = Config(
    name="tiny",
    model=Gpt2Config(context=8, layers=1, heads=2, channels=8),
    batch_size=4,
    steps=10,
    evaluation=EvaluationConfig(interval=0, batches=2),
    checkpoint=CheckpointConfig(interval=0),
)


@pytest.fixture(autouse=True)
def no_tuned_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven " * 60)
    return file


def test_training_from_python(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = train_from_python.main((str(text),), steps=50, config=TINY)
    shown = capsys.readouterr().out
    assert 0 < loss < 3.0
    assert f"validation loss {loss:.4f}" in shown
    assert "update 50: loss" in shown
    for stage in ("draw", "embed", "forward", "backward", "reduce", "update"):
        assert f" {stage} " in shown
    assert "{0: 1, 1: 49}" in shown


def test_a_pipeline_of_three_stages() -> None:
    digests, statistics = custom_stage.checksums(blocks=20, size=10)
    assert digests == {n: hashlib.sha256(bytes([n]) * 10).hexdigest()[:12] for n in range(20)}
    assert statistics["hash"].items_out == 20
    assert statistics["hash"].workers == 2


def test_a_stage_in_the_training_sees_every_update_and_changes_no_bit(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(TINY, 2, vocabulary=13)
    watch = custom_stage.watched_training(config, every=2)
    assert "ratios: 5 calls" in capsys.readouterr().out
    assert max(watch.ratios) == 10
    assert all(ratio > 0 for ratio in watch.ratios[10].values())
    alone = Training(config, RandomTokens(config.model.geometry(), config.batch_sizes, config.seed))
    assert [update.step for update in replay(alone)] == list(range(1, 11))
    with alone.banks.lease_newest() as expected:
        for name, tensor in watch._before.items():
            np.testing.assert_array_equal(tensor, getattr(expected.bank.weights, name))


def test_custom_stages_print_their_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    custom_stage.main(steps=20, config=TINY)
    shown = capsys.readouterr().out
    assert "64 blocks hashed by 2 threads" in shown
    assert "of its norm per update" in shown


def test_word_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.py").write_text("import os\nimport sys\n")
    (tmp_path / "deep" / "two.py").write_bytes(b"import os  # \xff\n")
    (tmp_path / "notes.txt").write_text("import nothing\n")
    total = word_count.main(tmp_path)
    assert total == {"import": 3, "os": 2, "sys": 1}
    shown = capsys.readouterr().out
    assert "2 files, 3 lines, 6 words" in shown
    for stage in ("paths", "read", "words", "lines", "total"):
        assert f" {stage}: " in shown
    many, statistics = word_count.count_folder(tmp_path, workers=3)
    assert many["import"] == 3
    assert statistics["total"].items_in == 4


def test_sampling_from_a_model_trained_for_the_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "text.txt"
    small.write_text("abc abd " * 200)
    monkeypatch.setattr("threadloom.stages.data.text_reading.standard_library_text", lambda: sample_text(small))
    text = sample.main(prompt="a", steps=5, config=TINY)
    assert set(text) <= set("abcd ")
    assert len(text) == 200
    assert "tokens, " in capsys.readouterr().out


def sample_text(file: Path) -> object:
    from threadloom.stages.data.text_reading import read_text

    return read_text([file])
