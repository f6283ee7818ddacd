"""A run on a mixture of standard input and a file: stopped and resumed elsewhere, it has the weights of one piece."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stages.support import STORY, story
from tests.stages.training.test_resume import files
from threadloom.stages.config import Config, ConfigError
from threadloom.stages.data import DataError
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.resolve.loading import load_config
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunMode

pytestmark = [pytest.mark.timeout(300), STORY]


def mixed(folder: Path, *overrides: str) -> Config:
    story(folder)  # writes the text
    texts = json.dumps(["-", str(folder / "text.txt")])
    return apply_overrides(
        story(folder), [f"data.text={texts}", "data.mixture=[1,2]", "schedule.decay_steps=4", *overrides]
    )


def test_a_run_is_resumed_with_its_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(json.dumps({"text": f"the dog ran to the cat {n}"}).encode() + b"\n" for n in range(40))

    def pipe(piped: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(piped), isatty=lambda: False))

    pipe(content)
    train(mixed(tmp_path, "steps=4"), tmp_path / "whole", tuned=False)
    pipe(content)
    train(mixed(tmp_path, "steps=2", "threads.forward=1"), tmp_path / "begun", tuned=False)
    pipe(b"not read")
    run = tmp_path / "elsewhere"
    shutil.move(tmp_path / "begun", run)
    train(apply_overrides(load_config(run), ["steps=4", "threads.forward=2"]), run, RunMode.RESUME, tuned=False)
    assert files(run, 4) == files(tmp_path / "whole", 4)
    assert load_config(run).data.text[0] == "-"
    with pytest.raises(ConfigError, match=r"data\.mixture: saved \[1\.0, 2\.0\], now \[2\.0, 1\.0\]"):
        train(apply_overrides(load_config(run), ["data.mixture=[2,1]", "steps=5"]), run, RunMode.RESUME)
    (run / "data" / "standard-input.jsonl").write_bytes(content[:-20])
    with pytest.raises(DataError, match="expected the text that the run was started with"):
        train(apply_overrides(load_config(run), ["steps=5", "data.invalid=skip"]), run, RunMode.RESUME)
