"""The command line: help, a run from text to sample, and output to a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from tests.error_bounds import mean_loss
from tests.stages.run.test_session_transformers import weights_of, windows
from tests.stages.support import command, story
from tests.stages.training.test_resume import files
from threadloom.stages.resolve.loading import CONFIG_NAMES, load_config, to_json
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunMode, read_metrics

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Remove the log configuration of the command line."""
    yield
    logger.remove()


HELP = {
    "": ("train", "sample", "eval", "tune", "doctor", "--log-level", "--version", "threadloom train --config"),
    "train": ("--config", *CONFIG_NAMES, "--text", "stdlib", "--out", "--steps", "--set", "KEY=VALUE", "--resume",
              "--overwrite", "config.json", "metrics.jsonl", "loss.png", "timeline.png", "trace.json", "Ctrl-C"),
    "sample": ("RUN", "--prompt", "--tokens", "--temperature", "--top-k", "--top-p", "--seed",
               "--stop", "--ignore-eos"),
    "eval": ("RUN", "--text", "perplexity", "bits per character", "--stride", "--by-file", "--json", "bits per byte"),
    "tune": ("--config", "--budget", "--set"),
    "doctor": ("--json",),
}  # fmt: skip


@pytest.mark.parametrize("name", HELP)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_the_options_and_the_basics(name: str, flag: str) -> None:
    outcome = command(*([name] if name else []), flag)
    assert outcome.status == 0
    for part in HELP[name]:
        assert part in outcome.out, part
    assert max(map(len, outcome.out.splitlines())) <= 112


def test_unknown_commands_and_options_are_refused() -> None:
    for arguments in (("trian",), ("train", "--nosuch"), ("train",), ("sample",), ("train", "--steps=0", "--out=x")):
        outcome = command(*arguments)
        assert outcome.status == 2
        assert "Error: " in outcome.err
        assert "Usage: " in outcome.err


def test_from_text_to_sample_and_score(tmp_path: Path) -> None:
    """Training, sampling and evaluation, with a prompt, seeds and another text; without a terminal."""
    (tmp_path / "config.json").write_text(to_json(story(tmp_path, "trace.batches=8")))
    out = tmp_path / "run"
    trained = command("train", "--config", tmp_path / "config.json", "--out", out, "--sample", 30, "--no-tuned")
    assert trained.status == 0, trained.err
    assert "validation loss " in trained.out
    assert f"run directory: {out}" in trained.out
    for said in ("parameters", "memory", "step 1/12", "tokens/s", "ETA", "validation loss", "checkpoint"):
        assert said in trained.err, said

    names = {path.name for path in out.iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "loss.png", "timeline.png", "trace.json", "checkpoints", "data"}
    for picture in ("loss.png", "timeline.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {"forward", "backward", "update"} <= {event["name"].split()[0] for event in events}
    records = read_metrics(out / "metrics.jsonl")
    updates = [record for record in records if "loss" in record]
    assert [record["step"] for record in updates] == list(range(1, 13))
    assert set(updates[0]) == {"step", "loss", "lr", "grad_norm", "tokens_per_s", "seconds"}
    assert [record["step"] for record in records if "val_loss" in record] == [12]
    saved = json.loads((out / "config.json").read_text())
    assert None not in (saved["micro_batch"], saved["lanes"], saved["slots"], saved["threads"]["forward"])

    first = command("sample", out, "--prompt", "the ", "--tokens", 40, "--seed", 5, "--top-k", 5, "--top-p", 0.9)
    assert first.out.startswith("the ")
    assert len(first.out.rstrip("\n")) == 44
    again = command("sample", out, "--prompt", "the ", "--tokens", 40, "--seed", 5, "--top-k", 5, "--top-p", 0.9)
    other = command("sample", out, "--prompt", "the ", "--tokens", 40, "--seed", 6, "--top-k", 5, "--top-p", 0.9)
    assert first.out == again.out != other.out
    greedy = [command("sample", out, "--temperature", 0, "--tokens", 20, "--seed", seed).out for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert command("sample", out, "--tokens", 0, "--prompt", "cat").out == "cat\n"

    own = command("eval", out)
    assert own.status == 0
    for said in ("loss ", "perplexity ", "bits per character", "bits per byte"):
        assert said in own.out
    elsewhere = command("eval", out, "--text", tmp_path / "text.txt")
    assert elsewhere.status == 0
    assert elsewhere.out != own.out


def test_eval_repeats_the_final_validation_loss_of_the_run(tmp_path: Path) -> None:
    """The last evaluation covers the windows of the whole split if enough batches are allowed.

    `eval` scores the tokens after the last whole window, too, prints four decimals, and may compute in another order.
    """
    config = story(tmp_path, "evaluation.final_batches=1000", "micro_batch=1", "steps=3")
    outcome = train(config, tmp_path / "run")
    assert outcome.val_loss is not None
    ids, targets = windows(tmp_path, config.model.context)
    path = tmp_path / "run" / "data" / "validation.npy"
    tokens = np.load(path)
    assert f"({len(tokens) - 1} tokens, " in command("eval", tmp_path / "run").out
    np.save(path, tokens[: ids.size + 1])
    said = command("eval", tmp_path / "run").out
    assert f"({ids.size} tokens, " in said
    _, bound = mean_loss(weights_of(tmp_path / "run"), ids, targets, config.model.heads)
    assert abs(float(said.split()[1]) - outcome.val_loss) <= 0.5e-4 + 2.0 * bound


def test_set_reaches_every_kind_of_setting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(to_json(story(tmp_path)))
    chosen = {
        "delay": 2, "threads.forward": 1, "threads.backward": 2, "lanes": 1, "micro_batch": 4, "seed": 1,
        "optimizer.lr": 3e-4, "schedule.kind": "linear", "evaluation.interval": 2, "slots": 3,
    }  # fmt: skip
    settings = [f"--set={key}={value}" for key, value in chosen.items()]
    start = ("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run", "--sample=0", "--no-tuned")
    assert command(*start, "--steps=3", *settings).status == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    for key, value in {**chosen, "steps": 3}.items():
        found = saved
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_overwrite_replaces_and_gives_the_same_run_again(tmp_path: Path) -> None:
    config, out = story(tmp_path, "steps=3"), tmp_path / "run"
    train(config, out)
    first = files(out, 3)
    train(config, out, RunMode.OVERWRITE)
    assert files(out, 3) == first
    assert [record["step"] for record in read_metrics(out / "metrics.jsonl") if "loss" in record] == [1, 2, 3]


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_shipped_configurations_resolve_for_any_machine(name: str, cores: int) -> None:
    table = {
        "nanogpt-tuned": (None, 64, 128, 4, 4, 12), "nanogpt-pipelined": (None, 64, 128, 4, 4, 12),
        "nanogpt-cpu": (None, 64, 128, 4, 4, 12), "shakespeare": (None, 256, 384, 6, 6, 16),
        "small": (10000, 128, 256, 2, 8, 32), "optimized": (16000, 128, 384, 4, 6, 16),
        "large": (16000, 128, 384, 6, 6, 16), "gpt2": (50257, 64, 768, 12, 12, 4),
        "llama-small": (8192, 256, 384, 8, 6, 8), "smollm2-135m": (49152, 512, 576, 30, 9, 8),
        "qwen3-0.6b": (151936, 512, 1024, 28, 16, 8),
    }  # fmt: skip
    config = load_config(name)
    model = config.model
    sizes = (model.vocab_size, model.context, model.channels, model.layers, model.heads, config.batch_size)
    assert sizes == table[name]
    resolved = resolve(config, cores, model.vocab_size or 65)
    assert resolved.micro_batches >= resolved.lanes >= 1
    assert resolve(resolved, 3) == resolved, "no setting is open"
    if name == "nanogpt-cpu":
        optimizer, schedule = config.optimizer, config.schedule
        recipe = (config.steps, optimizer.lr, schedule.min_lr, schedule.warmup, optimizer.beta2, optimizer.weight_decay)
        assert recipe == (2000, 1e-3, 1e-4, 100, 0.99, 0.1)
        assert (optimizer.clip, config.data.train_fraction, config.data.tokenizer.value) == (1.0, 0.9, "characters")
