"""Runs on packed documents within borders: stopped and resumed inside an epoch, with evaluations and a delay."""

import json
from pathlib import Path

import pytest

from tests.stages.support import STORY, story
from tests.stages.training.test_resume import files
from threadloom.stages.config import ConfigError
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.resolve.loading import load_config
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunMode

pytestmark = [pytest.mark.timeout(300), STORY]

PACKED = ("data.packing=documents", "data.borders=reset", "data.shuffle=epochs", "schedule.decay_steps=6", "delay=1")


def test_a_run_is_resumed_inside_an_epoch(tmp_path: Path) -> None:
    """Each file of plain text is a document; the longer one is split."""
    story(tmp_path)  # writes the text
    (tmp_path / "short.txt").write_text("the cat sat")
    texts = json.dumps([str(tmp_path / "text.txt"), str(tmp_path / "short.txt")])
    config = apply_overrides(story(tmp_path), [f"data.text={texts}", *PACKED, "data.validation_text=" + texts])
    train(apply_overrides(config, ["steps=6"]), tmp_path / "whole", tuned=False)
    run = tmp_path / "begun"
    train(apply_overrides(config, ["steps=3", "threads.forward=1"]), run, tuned=False)
    train(apply_overrides(load_config(run), ["steps=6", "threads.forward=2"]), run, RunMode.RESUME, tuned=False)
    assert files(run, 6) == files(tmp_path / "whole", 6)
    for name in ("borders=ignored", "shuffle=drawn"):
        with pytest.raises(ConfigError, match=rf"data\.{name.split('=')[0]}: saved"):
            train(apply_overrides(load_config(run), [f"data.{name}", "steps=7"]), run, RunMode.RESUME)


def test_borders_of_a_running_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.borders: expected a text of documents.* data\.packing=documents"):
        train(story(tmp_path, "data.borders=reset"), tmp_path / "run", tuned=False)


def test_a_mixture_of_packed_documents_is_resumed_inside_epochs(tmp_path: Path) -> None:
    story(tmp_path)
    for name in ("short", "other"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} cat sat on the mat and the dog ran to the cat")
    texts = json.dumps([str(tmp_path / f"{name}.txt") for name in ("text", "short", "other")])
    valid = f"data.validation_text={tmp_path / 'text.txt'}"
    config = apply_overrides(story(tmp_path), [f"data.text={texts}", "data.mixture=[2,1,1]", valid, *PACKED])
    train(apply_overrides(config, ["steps=6"]), tmp_path / "whole", tuned=False)
    run = tmp_path / "begun"
    train(apply_overrides(config, ["steps=3", "threads.forward=1"]), run, tuned=False)
    train(apply_overrides(load_config(run), ["steps=6", "threads.forward=2"]), run, RunMode.RESUME, tuned=False)
    assert files(run, 6) == files(tmp_path / "whole", 6)
