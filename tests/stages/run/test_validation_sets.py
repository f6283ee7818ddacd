"""Named validation sets: each has the loss of the model on it, in metrics, display and plot, and changes no weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.resolve.support import refusal
from tests.stages.support import story, tiny
from tests.stages.training.test_resume import files, losses
from threadloom.stages.config import Config
from threadloom.stages.data import prepare, prepare_sets, validation_sets
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.encoding.pipeline import encode_units
from threadloom.stages.data.token_file import DataError
from threadloom.stages.inference import TextOptions, evaluate_text
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.run import train
from threadloom.stages.run.display import TrainingProgress, progress_line
from threadloom.stages.run.plots import Curves, loss_figure
from threadloom.stages.storage import RunMode, read_metrics

pytestmark = pytest.mark.timeout(60)

COMMON = ("evaluation.interval=6", "evaluation.batches=1000", "pictures=false")


def with_sets(folder: Path, *overrides: str) -> Config:
    (folder / "sea.txt").write_text("the sea and the cat ran to the sea on a mat " * 30)
    (folder / "mat.jsonl").write_text('{"text": "a mat"}\n{"text": "the dog sat on the mat and ran to a mat"}\n' * 20)
    sets = f'evaluation.sets={{"sea": "{folder}/sea.txt", "mat.1": "{folder}/mat.jsonl"}}'
    return story(folder, *COMMON, sets, *overrides)


@pytest.mark.parametrize("order", ["id", "frequency"])
def test_the_losses_are_those_of_the_model_on_each_text(order: str, tmp_path: Path) -> None:
    overrides = (f"data.token_order={order}", "optimizer.ema=0.5")
    train(with_sets(tmp_path, *overrides), tmp_path / "run")
    found = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in line]
    assert [(line["step"], list(line["sets"])) for line in found] == [(6, ["sea", "mat.1"]), (12, ["sea", "mat.1"])]
    # windows of a context that do not overlap score all tokens but the first and some of the last
    for name, file in (("sea", "sea.txt"), ("mat.1", "mat.jsonl")):
        score = evaluate_text(tmp_path / "run", (str(tmp_path / file),), None, TextOptions())
        assert found[-1]["sets"][name] == pytest.approx(score.loss, abs=0.15)
        assert abs(found[-1]["sets"][name] - found[-1]["val_loss"]) > 1e-3

    plain = story(tmp_path, *COMMON, *overrides)
    train(plain, tmp_path / "plain")
    assert files(tmp_path / "plain", 12) == files(tmp_path / "run", 12)
    assert losses(tmp_path / "plain") == losses(tmp_path / "run")
    scores = [line["val_loss"] for line in read_metrics(tmp_path / "plain" / "metrics.jsonl") if "val_loss" in line]
    assert scores == [line["val_loss"] for line in found]


def test_a_resumed_run_may_have_other_sets_and_a_plot_has_all(tmp_path: Path) -> None:
    train(with_sets(tmp_path, "steps=6", "schedule.decay_steps=12"), tmp_path / "run")
    train(story(tmp_path, *COMMON, "schedule.decay_steps=12"), tmp_path / "run", RunMode.RESUME)
    curves = Curves.read(tmp_path / "run" / "metrics.jsonl")
    assert list(curves.sets) == ["sea", "mat.1"]
    assert [np.isfinite(series).tolist() for series in curves.sets.values()] == [[True, False]] * 2
    legend = loss_figure({"": curves}).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["training", "validation", "sea", "mat.1"]


def test_a_set_is_encoded_once_unless_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = list[str]()

    def counting(units: Any, names: Any, *rest: Any) -> Any:
        encoded.extend(names)
        return encode_units(units, names, *rest)

    monkeypatch.setattr(validation_sets, "encode_units", counting)
    config = with_sets(tmp_path, "data.tokenizer=bytes")
    folder = tmp_path / "data"

    def prepared(*overrides: str, text: str = "the sea and a cat ") -> dict[str, list[int]]:
        encoded.clear()
        changed = apply_overrides(config, overrides)
        data = prepare(changed.data, changed.model, StringText(text * 40), folder)
        found = prepare_sets(changed.evaluation.sets, changed.data, data, folder)
        rows = np.arange(256) if data.order is None else data.order.rows
        expected = [rows[byte] for byte in b"the sea and the cat ran to the sea on a mat " * 30]
        assert found["sea"].ids.tolist() == expected
        return {name: file.ids.tolist() for name, file in found.items()}

    first = prepared()
    assert encoded == ["sea.npy", "mat.1.npy"]
    assert prepared() == first and encoded == []
    (folder / "sets" / "mat.1.documents.npy").unlink()
    assert prepared() == first and encoded == ["mat.1.npy"]
    (folder / "sets" / "sea.npy").write_bytes(b"damaged")
    assert prepared() == first and encoded == ["sea.npy"]
    (tmp_path / "mat.jsonl").write_text('{"text": "another mat"}\n' * 20)
    assert prepared() != first and encoded == ["mat.1.npy"]
    assert prepared("data.token_order=frequency") and encoded == ["sea.npy", "mat.1.npy"]
    assert prepared("data.token_order=frequency") and encoded == []
    assert prepared("data.packing=documents") and encoded == ["sea.npy", "mat.1.npy"], "a file is a document"


def test_a_killed_set_is_continued_with_the_same_tokenizer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_sets(tmp_path, "data.tokenizer=bytes")
    data = prepare(config.data, config.model, StringText("the sea and a cat " * 40), tmp_path / "data")
    journals = list[str]()

    def killed(units: Any, names: Any, tokenizer: Any, kind: Any, folder: Any, characters: int) -> Any:
        journals.append(folder.begin().key)
        (folder.path / "left").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(validation_sets, "encode_units", killed)
    left = tmp_path / "data" / "sets" / ".preparing" / "left"
    for overrides, continued in (((), False), ((), True), (("data.special_tokens=tokens",), False)):
        settings = apply_overrides(config, overrides).data
        assert left.exists() == bool(journals)
        with pytest.raises(KeyboardInterrupt):
            prepare_sets(config.evaluation.sets, settings, data, tmp_path / "data")
        assert (len(journals) > 1 and journals[-1] == journals[-2]) == continued


def test_the_line_of_a_run_has_the_losses_in_order() -> None:
    progress = TrainingProgress(1, 2, 1.0, 1.0, 0.1, 1.0, 1.0, None, val_loss=1.5, set_losses={"a": 2.0, "b": 3.0})
    assert "val loss 1.5000, a 2.0000, b 3.0000, lr" in progress_line(progress)


def test_a_set_without_a_window_or_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a mat")
    with pytest.raises(DataError, match=r"sets/short\.npy"):
        train(story(tmp_path, f'evaluation.sets={{"short": "{tmp_path}/short.txt"}}'), tmp_path / "run")
    with refusal("evaluation.sets", "'../up'", '{"law": "law.txt"}'):
        tiny('evaluation.sets={"../up": "x"}')
