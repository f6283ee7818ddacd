"""Faults of a whole run: one error line with the file and a hint, and earlier checkpoints are unaffected."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from loguru import logger

from tests.stages.support import STORY, Outcome, command, forked, story
from tests.stages.training.test_resume import files
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.cli import main
from threadloom.stages.data.batches import TokenBatches
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.models import initialise
from threadloom.stages.resolve.loading import to_json
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunDirectory, RunMode, read_metrics

pytestmark = [pytest.mark.timeout(60), STORY]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Remove the log configuration of the command line."""
    yield
    logger.remove()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the text and `run`, which has 4 updates and checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    train(story(folder, "steps=4", "schedule.decay_steps=8", "checkpoint.interval=2"), folder / "run")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def resume(run: Path, *more: str) -> Outcome:
    return command("train", "--resume", "--out", run, "--steps=8", "--sample=0", "--no-tuned", *more)


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@pytest.mark.usefixtures("finished")  # compiles the kernels, whose cache entries exceed the limits on file sizes
class TestFullDisk:
    """A full disk, simulated by a limit on the size of files: the system refuses real writes."""

    def limited(self, limit: int, log: Path, *arguments: str | Path) -> str:
        def child() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            main([str(argument) for argument in arguments])

        assert forked(child, log) == 1
        said = log.read_text()
        assert "Traceback" not in said
        (error,) = [line for line in said.splitlines() if " ERROR " in line]
        return error

    def test_for_metrics(self, tmp_path: Path) -> None:
        config = story(tmp_path, "steps=1200", "checkpoint.interval=100", "evaluation.interval=0")
        (tmp_path / "config.json").write_text(to_json(config))
        out = tmp_path / "run"
        error = self.limited(65_000, tmp_path / "log", "train", "--config", tmp_path / "config.json", "--out", out)
        assert f"{out / 'metrics.jsonl'}: expected " in error
        assert "ulimit -f" in error
        steps = [record["step"] for record in read_metrics(out / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1)), "complete lines, none missing"
        assert Checkpoint.open(max((out / "checkpoints").glob("step-*"))).step >= 100
        train(story(tmp_path, "steps=700", "schedule.decay_steps=1200"), out, RunMode.RESUME)

    def test_for_a_checkpoint(self, run: Path, finished: Path, tmp_path: Path) -> None:
        before = files(run, 2), files(run, 4)
        arguments = ("train", "--resume", "--out", run, "--steps=8", "--no-tuned")
        error = self.limited(20_000, tmp_path / "log", *arguments)
        assert str(run / "checkpoints") in error
        assert "Hint: " in error
        assert "stage 'save', step=6" in error
        assert (files(run, 2), files(run, 4)) == before
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
        assert resume(run).status == 0
        train(story(finished, "steps=8", "checkpoint.interval=2"), tmp_path / "whole")
        assert files(run, 8) == files(tmp_path / "whole", 8)

    def test_for_the_token_files(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        arguments = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
        error = self.limited(1_500, tmp_path / "log", *arguments)
        assert "data" in error
        assert "ulimit -f" in error


class TestDamagedCheckpoint:
    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json", "config.json"])
    @pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
    def test_one_flipped_byte_is_refused_and_the_hint_works(
        self, run: Path, finished: Path, tmp_path: Path, name: str, place: float
    ) -> None:
        newest = run / "checkpoints" / "step-000004"
        flip(newest / name, place)
        older = files(run, 2)
        resume(run).refuses(newest / name, f"remove {newest} to resume from step-000002")
        assert files(run, 2) == older
        if (name, place) == ("optimizer.safetensors", 0.5):
            shutil.rmtree(newest)
            assert resume(run).status == 0
            train(story(finished, "steps=8", "checkpoint.interval=2"), tmp_path / "whole")
            assert files(run, 8) == files(tmp_path / "whole", 8)

    @pytest.mark.parametrize("what", ["sample", "eval"])
    def test_a_damaged_model_is_not_used(self, run: Path, what: str) -> None:
        flip(run / "checkpoints" / "step-000004" / "model.safetensors", 0.5)
        command(what, run).refuses(run / "checkpoints" / "step-000004" / "model.safetensors", "Hint: ")

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    def test_a_missing_file(self, run: Path, name: str) -> None:
        (run / "checkpoints" / "step-000004" / name).unlink()
        for outcome in (resume(run), command("sample", run)):
            outcome.refuses(run / "checkpoints" / "step-000004" / name, "no such file")


class TestTokenFiles:
    def test_a_truncated_file_is_refused_by_eval(self, run: Path) -> None:
        path = run / "data" / "validation.npy"
        path.write_bytes(path.read_bytes()[:-10])
        command("eval", run).refuses(path, "tokens in its header", "Hint: ")

    def test_an_id_out_of_range_is_refused_by_eval(self, run: Path) -> None:
        path = run / "data" / "validation.npy"
        ids = np.load(path)
        ids[5] = 999
        np.save(path, ids)
        command("eval", run).refuses(path, "999", "Hint: ")

    def test_an_id_out_of_range_never_reaches_a_kernel_in_training(self, tmp_path: Path) -> None:
        """The file changes after its check, and the draw stage checks every window that it copies."""

        def poisoned(tokens: TokenFile, *rest: Any) -> TokenBatches:
            tokens.ids = np.full(len(tokens.ids), 77, np.uint16)
            return TokenBatches(tokens, *rest)

        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        with patch("threadloom.stages.data.choice.TokenBatches", poisoned):
            outcome = command("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run", "--no-tuned")
        outcome.refuses("train.npy", "id 77 at position", "delete it", "stage 'draw', batch=0 micro=0")


class TestDivergence:
    def test_a_loss_that_is_nan(self, tmp_path: Path) -> None:
        def poisoned(weights: dict[str, np.ndarray], *rest: object, **options: object) -> None:
            initialise(weights, *rest, **options)  # type: ignore[arg-type]
            if "lnf_bias" in weights and len(weights["wte"]) > 3:  # the warm-up model is smaller
                weights["lnf_bias"][3] = np.nan

        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        with patch("threadloom.stages.models.initial_weights.initialise", poisoned):
            outcome = command("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run", "--no-tuned")
        outcome.refuses("the loss of update 1 is nan", "optimizer.lr", "TrainingDiverged")

    def test_an_absurd_learning_rate_is_refused_before_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        out = tmp_path / "run"
        outcome = command("train", "--config", tmp_path / "config.json", "--out", out, "--set", "optimizer.lr=1e30")
        outcome.refuses("optimizer.lr", "0 to 1000")
        assert not out.exists()


class TestRefusedBeforeTheStart:
    @pytest.mark.parametrize(
        ("setting", "parts"),
        [
            ("delya=2", ("delya", "did you mean 'delay'?")),
            ("forward=2", ("threads.forward",)),
            ("threads=2", ("threads.forward",)),
            ("delay=two", ("delay", "an integer")),
            ("delay=1.5", ("delay", "an integer")),
            ("delay=-1", ("delay", "0 to 64")),
            ("delay", ("key=value",)),
            ("optimizer.lr=nan", ("optimizer.lr",)),
            ("model.heads=3", ("model.channels", "a multiple of model.heads = 3", "divide it: [1, 2, 4, 8, 16]")),
            ("micro_batch=3", ("micro_batch", "a divisor of batch_size = 4", "[1, 2, 4]")),
            ("lanes=9", ("lanes", "micro-batches")),
            ("model.context=5000", ("model.context",)),
            ("model.layers=0", ("model.layers",)),
            ("channel_capacity=0", ("channel_capacity",)),
            ("slots=0", ("slots",)),
            ("threads.forward=0", ("threads.forward",)),
            ("schedule.kind=sometimes", ("schedule.kind", "cosine")),
            ("model.channels=60000", ("model: ", "parameters")),
        ],
    )
    def test_settings(self, setting: str, parts: tuple[str, ...], tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        out = tmp_path / "run"
        outcome = command(
            "train", "--config", tmp_path / "config.json", "--out", out, "--set", setting, "--steps=1", "--no-tuned"
        )
        outcome.refuses(*parts)
        assert not (out / "metrics.jsonl").exists()

    def test_a_configuration_file(self, tmp_path: Path) -> None:
        path, out = tmp_path / "config.json", tmp_path / "run"
        good = to_json(story(tmp_path))
        for bad, parts in {
            good.replace('"delay"', '"dealy"'): ("dealy", "config.json", "did you mean 'delay'?"),
            good.replace('"steps": 12', '"steps": "12"'): ("steps", '"12"', "an integer"),
            good[:-20]: (str(path), "expected JSON"),
            "[]": ("a JSON object",),
        }.items():
            path.write_text(bad)
            command("train", "--config", path, "--out", out).refuses(*parts)
        command("train", "--config", tmp_path / "none.json", "--out", out).refuses("none.json", "No such file")
        command("train", "--config", "nanogtp-cpu", "--out", out).refuses("did you mean nanogpt-cpu")
        assert not out.exists()

    def test_texts(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        (tmp_path / "empty.txt").write_text("")
        (tmp_path / "short.txt").write_text("ab" * 20)
        (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
        for name in ("none.txt", "empty.txt", "short.txt", "binary.txt"):
            start = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / f"run-{name}")
            outcome = command(*start, "--text", tmp_path / name)
            outcome.refuses(*([name] if name != "short.txt" else ["model.context"]))
            assert not (tmp_path / f"run-{name}").exists()

    def test_a_failed_start_does_not_block_the_directory(self, tmp_path: Path) -> None:
        """The same --out can be used again, also after a process was killed before its first update."""
        (tmp_path / "config.json").write_text(to_json(story(tmp_path, "steps=1")))
        (tmp_path / "short.txt").write_text("ab" * 20)
        out = tmp_path / "run"
        start = ("train", "--config", tmp_path / "config.json", "--out", out, "--no-tuned", "--sample=0")
        command(*start, "--text", tmp_path / "short.txt").refuses("model.context")
        (out / "checkpoints").mkdir(parents=True)
        (out / "data").mkdir()
        resume(out).refuses(out / "config.json", "leave out --resume")
        assert command(*start).status == 0
        command(*start).refuses("--resume", "--overwrite")

    def test_a_run_is_not_replaced_if_the_new_text_cannot_be_read(self, run: Path, tmp_path: Path) -> None:
        before = files(run, 4)
        start = ("train", "--config", run / "config.json", "--out", run, "--overwrite")
        command(*start, "--text", tmp_path / "none.txt").refuses("none.txt")
        assert files(run, 4) == before

    def test_run_directories(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
        new = ("train", "--config", tmp_path / "config.json", "--no-tuned", "--out")
        command(*new, run).refuses(run, "--resume", "--overwrite")
        command("train", "--resume", "--out", tmp_path / "nothing").refuses("nothing", "train --out")
        command(*new, run, "--resume", "--overwrite").refuses("exclude each other")
        with RunDirectory.claim(run, RunMode.RESUME):
            resume(run).refuses(run, "another process", "wait until it ends")
            command(*new, run, "--overwrite").refuses(run, "another process")
        assert files(run, 4)
        (run / "config.json").unlink()
        resume(run).refuses(run / "config.json", "--overwrite")
        assert command(*new, run, "--overwrite", "--steps=1", "--sample=0").status == 0

    def test_models_to_sample_and_evaluate(self, run: Path, tmp_path: Path) -> None:
        command("sample", tmp_path / "no").refuses("no such folder", "train --out")
        command("eval", tmp_path).refuses(tmp_path, "Hint: ")
        command("sample", run, "--temperature=-1").refuses("temperature")
        command("sample", run, "--top-p=2").refuses("top_p")
        command("sample", run, "--top-k=0").refuses("top-k")
        command("eval", run, "--text", tmp_path / "none.txt").refuses("none.txt")
        command("eval", run / "checkpoints" / "step-000002").refuses("--text FILE_OR_DIR")
        (tmp_path / "tiny.txt").write_text("t")
        command("eval", run, "--text", tmp_path / "tiny.txt").refuses("tiny.txt", "at least two tokens")


def test_resume_with_a_changed_setting_or_text(run: Path, finished: Path, tmp_path: Path) -> None:
    saved = files(run, 4)
    resume(run, "--set", "delay=1").refuses("delay: ", "saved 0, now 1", "--out")
    (tmp_path / "other.txt").write_text("another text, which is long enough for the context. " * 40)
    resume(run, "--text", str(tmp_path / "other.txt")).refuses("the text that the run was started with", "--out")
    command("train", "--resume", "--out", run, "--steps=3").refuses("steps", "at least the 4 updates")
    assert files(run, 4) == saved
    assert resume(run, "--set", "threads.forward=1", "--set", "slots=2").status == 0
