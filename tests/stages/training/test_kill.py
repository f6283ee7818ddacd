"""Runs killed at random moments and resumed: the same bits as without interruption, and every metric once.

Runs are forks of this process, in which all modules are loaded; one test uses the command line. The moments are
determined by seeds and by the progress of the run.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests.stages.checkpoint.checkpoint_writer import Operations, kill_self
from tests.stages.support import STORY, forked, story
from tests.stages.training.test_resume import files
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import Config
from threadloom.stages.memory.graph_items import label
from threadloom.stages.resolve.loading import to_json
from threadloom.stages.run.session import train
from threadloom.stages.storage import MetricsLog, RunMode, finished_checkpoints, read_metrics

pytestmark = [pytest.mark.timeout(120), STORY]

ROOT = Path(__file__).parents[3]
STEPS = 12


def settings(delay: int) -> tuple[str, ...]:
    return (f"delay={delay}", f"steps={STEPS}", "evaluation.interval=4", "checkpoint.interval=3", "checkpoint.keep=2")


def start_or_resume(config: Config, out: Path) -> None:
    """Resume a run, or start it if it has no configuration yet."""
    if not (out / "config.json").exists():
        train(config, out, RunMode.OVERWRITE)
    else:
        train(config, out, RunMode.RESUME)


def figures(out: Path) -> tuple[list[tuple[int, float, float, float]], list[tuple[int, float]]]:
    """Return updates and evaluations in the order of the file, without times."""
    records = read_metrics(out / "metrics.jsonl")
    return (
        [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in records if "loss" in r],
        sorted((r["step"], r["val_loss"]) for r in records if "val_loss" in r),
    )


def assert_never_interrupted(out: Path, whole: Path) -> None:
    """Compare the files of the last checkpoint (weights, older versions, moments) and all metrics."""
    assert files(out, STEPS) == files(whole, STEPS)
    assert figures(out) == figures(whole)
    assert [step for step, *_ in figures(out)[0]] == list(range(1, STEPS + 1))


def assert_checkpoints_good(out: Path) -> None:
    for path in finished_checkpoints(out / "checkpoints"):
        Checkpoint.open(path)


@pytest.fixture(scope="module", params=[0, 1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The delay, and the folder of a run that is never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(story(folder, *settings(request.param)), folder / "run")
    return request.param, folder


def killed_until_done(folder: Path, out: Path, delay: int, kills: list[Callable[[], None]], *more: str) -> int:
    """Run with each of `kills` in turn, with varying threads, then to the end; return the number of killed runs."""
    died = 0
    for number, prepare in enumerate([*kills, lambda: None]):
        threads = (f"threads.forward={number % 3 + 1}", f"threads.backward={number % 2 + 1}", f"slots={number % 4 + 1}")
        config = story(folder, *settings(delay), *threads, *more)

        def child(prepare: Callable[[], None] = prepare, config: Config = config) -> None:
            prepare()
            start_or_resume(config, out)

        status = forked(child, folder / "log.txt")
        assert status in (0, -signal.SIGKILL), (folder / "log.txt").read_text()[-2000:]
        died += status != 0
        assert_checkpoints_good(out)
    return died


def at_metrics_line(count: int) -> Callable[[], None]:
    """Return a function that arranges to kill the process once `count` lines of metrics have been written."""

    def prepare() -> None:
        append, written = MetricsLog.append, iter(range(1, 10**6))

        def counted(self: MetricsLog, record: dict[str, float]) -> None:
            append(self, record)
            if next(written) == count:
                kill_self()

        patch.object(MetricsLog, "append", counted).start()

    return prepare


def at_file_operation(number: int) -> Callable[[], None]:
    """Return a function that arranges to kill the process before the file operation `number` of the whole run."""
    return lambda: Operations(number, kill_self).watch()


def at_stage_call(number: int, spin: int) -> Callable[[], None]:
    """Return a function that arranges to kill the process within stage call `number`, counted over a traced run."""

    def prepare() -> None:
        calls = iter(range(1, 10**6))

        def counted(item: object) -> dict[str, int | str]:
            if next(calls) == number:
                for _ in range(spin):
                    pass
                kill_self()
            return label(item)

        patch("threadloom.stages.run.session.label", counted).start()

    return prepare


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.soak)])
def test_killed_at_random_moments_and_resumed(whole: tuple[int, Path], seed: int, tmp_path: Path) -> None:
    delay, folder = whole
    rng = np.random.default_rng([seed, delay])
    kills = [
        at_metrics_line(int(rng.integers(1, 14))),
        at_file_operation(int(rng.integers(20, 160))),
        at_metrics_line(int(rng.integers(1, 8))),
        at_file_operation(int(rng.integers(1, 120))),
    ]
    died = killed_until_done(folder, tmp_path / "run", delay, [kills[place] for place in rng.permutation(4)])
    assert died >= 1
    assert_never_interrupted(tmp_path / "run", folder / "run")


def test_killed_in_the_middle_of_stages_and_resumed(whole: tuple[int, Path], tmp_path: Path) -> None:
    delay, folder = whole
    rng = np.random.default_rng(delay)
    kills = [at_stage_call(int(rng.integers(40, 200)), int(rng.integers(0, 20_000))) for _ in range(3)]
    assert killed_until_done(folder, tmp_path / "run", delay, kills, "trace.batches=4") >= 1
    assert_never_interrupted(tmp_path / "run", folder / "run")


def test_a_llama_killed_and_resumed(tmp_path: Path) -> None:
    llama = ("model.architecture=llama", "model.kv_heads=1", "model.qk_norm=true")
    train(story(tmp_path, *settings(2), *llama), tmp_path / "whole")
    kills = [at_metrics_line(5), at_file_operation(70), at_stage_call(90, 5_000)]
    assert killed_until_done(tmp_path, tmp_path / "run", 2, kills, "trace.batches=4", *llama) == len(kills)
    assert_never_interrupted(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("whole", [1], indirect=True)
def test_killed_before_each_of_the_first_file_operations(whole: tuple[int, Path], tmp_path: Path) -> None:
    """Killed before the configuration or the first checkpoint exists, a run can be started or resumed."""
    delay, folder = whole
    kills = [at_file_operation(number) for number in (1, 2, 3, *range(5, 40, 3))]
    assert killed_until_done(folder, tmp_path / "run", delay, kills) == len(kills)
    assert_never_interrupted(tmp_path / "run", folder / "run")


@pytest.mark.parametrize("whole", [0], indirect=True)
def test_killed_between_the_first_two_folders(whole: tuple[int, Path], tmp_path: Path) -> None:
    delay, folder = whole
    assert killed_until_done(folder, tmp_path / "run", delay, [at_file_operation(4)]) == 1
    assert_never_interrupted(tmp_path / "run", folder / "run")


@pytest.mark.parametrize("whole", [2], indirect=True)
def test_the_command_line_killed_from_outside_and_resumed(whole: tuple[int, Path], tmp_path: Path) -> None:
    """The process is killed once it has reported a checkpoint, and resumed with --resume."""
    delay, folder = whole
    (tmp_path / "config.json").write_text(to_json(story(folder, *settings(delay))))
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from threadloom.stages.cli import main; main()",
        "train",
        "--sample=0",
        "--no-tuned",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for attempt, sign in enumerate(("step 6: checkpoint", None)):
        how = ["--resume", "--set=threads.forward=1"] if attempt else [f"--config={tmp_path / 'config.json'}"]
        with subprocess.Popen(
            [*command, *how, f"--out={out}"], stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        ) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if sign and sign in line:
                    process.kill()
        assert process.returncode == (-signal.SIGKILL if sign else 0), "".join(said)
    assert_never_interrupted(out, folder / "run")
