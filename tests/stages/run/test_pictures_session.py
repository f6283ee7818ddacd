"""The pictures of a run are optional: a failure is a warning, and a setting turns them off."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from tests.stages.support import Outcome, command, story
from threadloom.pipeline import Trace
from threadloom.stages.resolve import to_json
from threadloom.stages.run import pictures

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


def train(folder: Path, *settings: str) -> Outcome:
    config = folder / "config.json"
    config.write_text(to_json(story(folder, "steps=2", "trace.batches=2", r'name="$\\foo$"')))
    changes = [f"--set={setting}" for setting in settings]
    return command("train", "--config", config, "--out", folder / "run", "--sample=5", "--no-tuned", *changes)


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("latex could not be found")


def test_a_picture_that_cannot_be_drawn_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw_timeline", broken)
    outcome = train(tmp_path)
    assert outcome.status == 0
    assert "validation loss" in outcome.out
    assert "run directory: " in outcome.out
    assert outcome.err.count("the pictures of the run were not drawn") == 1
    assert "latex could not be found" in outcome.err
    assert {"loss.png", "trace.json"} <= {path.name for path in (tmp_path / "run").iterdir()}, r"the name is $\foo$"


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace, "write_chrome", broken)
    outcome = train(tmp_path)
    assert outcome.status == 0
    assert "trace.json was not written" in outcome.err
    assert {"loss.png", "timeline.png"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_pictures_can_be_turned_off(tmp_path: Path) -> None:
    outcome = train(tmp_path, "pictures=false")
    assert outcome.status == 0, outcome.err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "trace.json" in names
    assert {"loss.png", "timeline.png"} & names == set()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pictures"] is False
