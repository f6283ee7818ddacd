"""`train --estimate`: its text from made-up figures, a real estimate, and its memory compared with a run."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loguru import logger

from tests.stages.support import command, story, tiny
from threadloom.pipeline import available_cores
from threadloom.stages import speeds
from threadloom.stages.config.settings import Precision
from threadloom.stages.console.json_worker import peak_resident_bytes
from threadloom.stages.resolve import precision
from threadloom.stages.resolve.loading import apply_overrides, load_config, to_json
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.run import estimate
from threadloom.stages.run.estimate import PROCESS, Estimate, count_due, estimate_run, estimate_text
from threadloom.stages.run.fitting import planned_memory
from threadloom.stages.speeds import Speeds
from threadloom.stages.training.warmup import compile_kernels

ROOT = Path(__file__).parents[3]
SMALL = ("model.vocab_size=10000", "model.context=128", "model.layers=2", "model.heads=8", "model.channels=256")


def made_up(available: int = 10**9) -> Estimate:
    config = tiny("steps=100", "evaluation.interval=30", "checkpoint.interval=0")
    return Estimate(config, {PROCESS: 200, "slots": 10**8}, available, 0.5, 3.0, 8.0, 2.0)


@pytest.mark.parametrize(
    ("steps", "interval", "times"), [(12, 4, 3), (13, 4, 4), (11, 4, 3), (5, 0, 1), (3, 9, 1), (1, 1, 1)]
)
def test_how_often_something_is_due(steps: int, interval: int, times: int) -> None:
    assert count_due(steps, interval) == times
    assert count_due(steps, interval) == sum(
        step == steps or (interval and step % interval == 0) for step in range(1, steps + 1)
    )


def test_concurrent_evaluations_take_a_core_and_the_last_one_follows_the_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threadloom.stages.run.estimate.available_cores", lambda: 4)
    found = made_up()
    assert found.evaluations == 3
    assert found.checkpoints == 1
    assert found.seconds == 100 * 0.5 + 3 * 8.0 / 4 + 2.0


def test_the_text_has_the_plan_the_time_and_the_method() -> None:
    text = estimate_text(made_up())
    for said in ("slots", "100.0 MB", "1,000 MB are available", "500.0 ms", "in total about", "random tokens"):
        assert said in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_does_not_fit_is_not_measured() -> None:
    found = replace(made_up(available=10**8 - 1), update=None)
    assert not found.fits
    assert found.seconds is None
    assert "does not fit" in estimate_text(found)
    assert made_up(available=10**8).fits


def test_a_real_estimate_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = story(tmp_path)
    found = estimate_run(config, tuned=False, seconds=0.5)
    assert found.update is not None
    assert 0 < found.update < 1
    assert found.config.model.vocab_size is not None, "taken from the text"
    assert found.memory[PROCESS] <= peak_resident_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_standard_input_is_a_text_of_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"abcab"), isatty=lambda: False))
    overrides = ["data.text=-", "data.tokenizer=characters", "model.vocab_size=null"]
    config = apply_overrides(load_config("nanogpt-cpu"), overrides)
    vocabulary, needed = estimate._text_figures(config)
    assert (vocabulary, needed > 0) == (3, True)


def test_an_estimate_warns_about_a_slow_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "speed_matters", lambda: True)
    monkeypatch.setattr(speeds, "speeds_here", lambda: Speeds(float32=200, bf16=1200, bf16x3=20, fp16=90))
    said: list[str] = []
    handler = logger.add(lambda line: said.append(str(line)), format="{message}")
    try:
        found = estimate_run(story(tmp_path, "precision=bf16x3"), tuned=False, seconds=0.5)
    finally:
        logger.remove(handler)
    assert found.config.precision is Precision.BF16X3
    assert sum("precision=bf16x3 is slower here" in line for line in said) == 1


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
    said = command("train", "--config", tmp_path / "config.json", "--estimate", "--no-tuned")
    assert said.status == 0
    assert "in total about" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "text.txt"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the current memory of a process")
def test_the_memory_of_the_compiler_is_not_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels()
    ballast = np.ones(300_000_000, np.uint8)
    assert estimate._process_bytes(Precision.FLOAT32) > ballast.nbytes
    monkeypatch.setattr(estimate, "compile_kernels", lambda **_: 20.0)  # as if the kernels had been compiled just now
    assert 50e6 < estimate._process_bytes(Precision.FLOAT32) < 250e6


RUN = """
import json, sys
from pathlib import Path
from threadloom.pipeline import available_cores
from threadloom.stages.step import saving
from threadloom.stages.run import estimate
from threadloom.stages.resolve import precision
from threadloom.stages import speeds
from threadloom.stages.console.json_worker import peak_resident_bytes, resident_bytes
from threadloom.stages.resolve.loading import from_json
from threadloom.stages.run.session import train
from threadloom.stages.training.warmup import compile_kernels
compile_kernels()
process = resident_bytes()
outcome = train(from_json(sys.stdin.read()), Path(sys.argv[1]), tuned=False)
print(json.dumps({"process": process, "peak": peak_resident_bytes()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the current memory of a process")
@pytest.mark.parametrize(
    "overrides",
    [
        SMALL,
        pytest.param((*SMALL, "delay=2", "checkpoint.copies=false"), marks=pytest.mark.soak),
        pytest.param(
            ("model.vocab_size=16000", "model.context=128", "model.layers=4", "model.heads=6", "model.channels=384",
             "delay=1"),
            marks=pytest.mark.soak,
        ),
    ],
)  # fmt: skip
def test_the_plan_agrees_with_the_memory_of_a_run(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Within a tenth, including plots, evaluation and checkpoints."""
    config = apply_overrides(
        story(tmp_path, *overrides), ("batch_size=8", "micro_batch=2", "steps=3", "trace.batches=8")
    )
    answer = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "run")], input=to_json(config), text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    found = json.loads(answer.stdout)
    planned = found["process"] + sum(planned_memory(resolve(config, available_cores())).values())
    assert 0.9 * planned <= found["peak"] <= 1.1 * planned, f"planned {planned:,}, used {found['peak']:,}"
