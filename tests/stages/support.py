"""Shared by the tests of stages: tiny configurations, runs in threads and in one thread, comparison of their results.

Nothing sleeps: a test that needs an order of events forces it with threading.Event.
"""

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from threadloom.pipeline import Trace
from threadloom.stages.checkpoint import Checkpoint, kept_versions
from threadloom.stages.cli import main
from threadloom.stages.config import (
    Config,
    Gpt2Config,
    LlamaConfig,
    OptimizerConfig,
    ResolvedConfig,
    RotaryConfig,
    ScheduleConfig,
    ScheduleKind,
)
from threadloom.stages.data.batches import BatchSource, EvaluationWindows, RandomTokens, evaluation_batches
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.embedding import DerivedEmbedding
from threadloom.stages.memory.allocation_plan import memory_plan
from threadloom.stages.memory.graph_items import Evaluation, Event, Saved, Update, label
from threadloom.stages.models import VocabularyOrder
from threadloom.stages.resolve import apply_overrides, resolve
from threadloom.stages.speeds import Speeds
from threadloom.stages.speeds.record import SpeedsRecord, speeds_key, speeds_path
from threadloom.stages.step.evaluate import Validation
from threadloom.stages.step.saving import CheckpointOutput
from threadloom.stages.training.precisions import compute_for
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training

WAIT = 30.0
"""Seconds to wait for a forced order of events before the test fails."""

TINY = Config(
    name="tiny",
    model=Gpt2Config(vocab_size=13, context=7, layers=2, heads=3, channels=15),
    batch_size=4,
    micro_batch=1,
    lanes=2,
    steps=6,
    optimizer=OptimizerConfig(lr=1e-2, clip=1.0),
    schedule=ScheduleConfig(kind=ScheduleKind.COSINE, warmup=2, min_lr=1e-3),
)
"""Sizes that are not multiples of 8; four micro-batches per update in two lanes."""

LLAMA = msgspec.structs.replace(
    TINY,
    name="tiny-llama",
    model=LlamaConfig(
        vocab_size=13, context=7, layers=3, heads=6, kv_heads=2, head_size=10, channels=15, mlp_width=21,
        rotary=RotaryConfig(dimensions=6), layers_without_rotary=(1,), qkv_bias=True, attn_proj_bias=True,
        mlp_bias=True, qk_norm=True,
    ),
)  # fmt: skip
"""A model of the Llama family with every variant: grouped heads, biases, norms of heads, a layer without rotary
positions, and another output projection than the token embedding."""

SEVERAL_CHUNKS = ("model.vocab_size=4099", "model.channels=40", "model.heads=4", "model.context=3", "model.layers=1")
"""Overrides with an arena of three chunks, so that several threads share reduction and update."""


def tiny(*overrides: str, base: Config = TINY) -> ResolvedConfig:
    """Return the tiny configuration with settings changed as by `--set`, resolved for two cores."""
    return resolve(apply_overrides(base, overrides), cores=2)


def validation(config: ResolvedConfig, batches: int = 2) -> Validation:
    """Return windows over random tokens; the final evaluation has one batch more."""
    geometry = config.model.geometry()
    ids = np.random.default_rng(9).integers(0, geometry.vocabulary, 40 * geometry.context + 1).astype(np.uint16)
    tokens = TokenFile(ids, geometry.vocabulary, geometry.context, Path("validation"))

    def windows(count: int) -> EvaluationWindows:
        return evaluation_batches(tokens, batch_size=config.batch_size, micro_batch=config.micro_batch, batches=count)

    return Validation(windows(batches), windows(batches + 1))


def build(
    config: ResolvedConfig,
    folder: Path | None = None,
    *,
    evaluate: bool = False,
    start: Checkpoint | None = None,
    data: BatchSource | None = None,
    order: VocabularyOrder | None = None,
    derived: DerivedEmbedding | None = None,
    losses: Mapping[int, float] | None = None,
) -> Training:
    """Return a training on random tokens; with `folder` it writes checkpoints there."""
    return Training(
        config,
        data or RandomTokens(config.model.geometry(), config.batch_sizes, config.seed),
        validation(config) if evaluate else None,
        CheckpointOutput(folder) if folder else None,
        start,
        order=order,
        derived=derived,
        losses=losses,
    )


def planned(config: ResolvedConfig, *, evaluates: bool = True, saves: bool = True) -> dict[str, int]:
    """Return the memory plan of a resolved configuration."""
    compute = compute_for(
        config.precision,
        config.geometry(),
        config.micro_batch,
        recompute=config.recompute,
        borders=config.bordered,
    )
    memory = compute.memory
    return memory_plan(config, memory, evaluates=evaluates, saves=saves)


def run_threads(training: Training, trace: Trace | None = None) -> list[Event]:
    """Run the training as a pipeline, and return its events."""
    with training.graph().start(resources=training.resources, trace=trace, label=label) as run:
        return list(run)


def run_sequence(training: Training) -> list[Event]:
    """Run the training in this thread, and return its events."""
    return list(replay(training))


Bits = NDArray[np.int32]


@dataclass(frozen=True)
class Result:
    """The result of a run as bits: all tensors of the needed versions, both moments, and all reported numbers."""

    tensors: Mapping[str, Bits]
    updates: tuple[tuple[int, float | None, float, float], ...]
    """Step, loss, learning rate and gradient norm."""
    evaluations: tuple[tuple[int, float], ...]
    saved: tuple[int, ...]


def result(training: Training, events: Iterable[Event]) -> Result:
    """Return the result of a finished training; check that no lease and no slot is still held."""
    events = list(events)
    statistics = training.banks.statistics()
    assert statistics.leases == 0, "a lease was not released"
    assert training.slots.statistics().lent == 0, "a slot was not given back"
    tensors: dict[str, Bits] = {}
    for version in kept_versions(statistics.newest, training.config.delay):
        with training.banks.lease(version) as lease:
            tensors |= {f"version {version} {n}": t.copy().view(np.int32) for n, t in lease.bank.arena.items()}
    for name, arena in training.optimizer.state.items():
        tensors |= {f"{name} {n}": t.copy().view(np.int32) for n, t in arena.items()}
    return Result(
        tensors,
        tuple((e.step, e.loss, e.lr, e.grad_norm) for e in events if isinstance(e, Update)),
        tuple(sorted((e.step, e.val_loss) for e in events if isinstance(e, Evaluation))),
        tuple(sorted(e.step for e in events if isinstance(e, Saved))),
    )


def assert_same(found: Result, expected: Result) -> None:
    """Compare all tensors bit for bit, and all reported numbers."""
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)
    assert found.updates == expected.updates
    assert found.evaluations == expected.evaluations
    assert found.saved == expected.saved


class Intercepted:
    """A stage that calls functions before and after each call; other attributes are those of the stage."""

    def __init__(
        self, stage: Any, before: Callable[[Any], None] | None, after: Callable[[Any, Any], None] | None
    ) -> None:
        self._stage = stage
        self._before = before
        self._after = after

    def __call__(self, item: Any) -> Any:
        if self._before:
            self._before(item)
        result = self._stage(item)
        if self._after:
            self._after(item, result)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def intercept(
    training: Training,
    stage: str,
    before: Callable[[Any], None] | None = None,
    after: Callable[[Any, Any], None] | None = None,
) -> None:
    """Call `before(item)` and `after(item, result)` around a stage, in its threads. Use before calling `graph`."""
    setattr(training, stage, Intercepted(getattr(training, stage), before, after))


def wait_for(event: threading.Event, what: str) -> None:
    """Wait for an event of a forced order; raise TimeoutError after `WAIT` seconds."""
    if not event.wait(WAIT):
        raise TimeoutError(f"not reached within {WAIT} s: {what}")


def write_config(path: Path, *overrides: str, base: Config = TINY) -> Path:
    """Write a configuration to a file, unresolved."""
    path.write_bytes(msgspec.json.encode(apply_overrides(base, overrides)))
    return path


# --- whole runs in their directories ----------------------------------------------------------------------------------

STORY = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork while other threads are alive


def story(folder: Path, *overrides: str) -> Config:
    """Return a small configuration for `session.train`, with its text in `folder`; the text is always the same."""
    text = folder / "text.txt"
    if not text.exists():
        words = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "sea")
        order = np.random.default_rng(3).integers(0, len(words), 1200)
        text.write_text(" ".join(words[place] for place in order) + "\n")
    model = Gpt2Config(context=8, layers=1, heads=2, channels=16)
    base = Config(name="story", model=model, batch_size=4, micro_batch=2, lanes=2, steps=12)
    common = (f'data.text=["{text}"]', "evaluation.batches=2", "trace.batches=0", "checkpoint.keep=3")
    return apply_overrides(base, (*common, *overrides))


def forked(work: Callable[[], object], log: Path | None = None) -> int:
    """Run `work` in a fork of this process, and return its exit status (negative: the signal)."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            work()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else error.code is not None
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fastest_in_float32(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep measured figures in `cache`, with speeds by which `precision=auto` is float32: nothing is measured."""
    monkeypatch.delenv("THREADLOOM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    speeds_path().parent.mkdir(parents=True)
    speeds_path().write_bytes(msgspec.json.encode(SpeedsRecord(speeds_key(), Speeds(float32=100.0))))


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Outcome:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str

    def refuses(self, *parts: str | Path) -> None:
        """Check that it failed with one line of error which contains all of `parts`, and no traceback."""
        assert self.status not in (0, None), self.out
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if " ERROR " in line or line.startswith("Error: ")]
        assert len(lines) == 1, self.err
        for part in parts:
            assert str(part) in lines[0], f"{part!s} is not in: {lines[0]}"


def command(*arguments: str | Path | float, piped: bytes | None = None) -> Outcome:
    """Run `threadloom` in this process, not on a terminal; check that it raised no exception but SystemExit.

    Standard input is `piped`.
    """
    found = CliRunner().invoke(main, [str(argument) for argument in arguments], input=piped)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert not CONTROL.search(found.output), "control characters without a terminal"
    return Outcome(found.exit_code, found.stdout, found.stderr)
