"""Tuning for real, on a model of a few hundred parameters: measured, shown, kept, and found again by `train`."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from loguru import logger
from rich.console import Console

from threadloom.stages import speeds
from threadloom.stages.config import Config, ModelConfig
from threadloom.stages.config.settings import Gemm
from threadloom.stages.machine.machine import detect
from threadloom.stages.resolve import precision
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.speeds.speeds import Speeds
from threadloom.stages.tools.tune import tune
from threadloom.stages.tools.tune.search import Findings, Trial, search
from threadloom.stages.tools.tune.space import Choice, Facts, pinned
from threadloom.stages.tools.tune.tune import (
    Record,
    Trials,
    TuningError,
    conclusions,
    record_path,
    run_tuning,
    table_of,
    tuned_settings,
)

TINY = Config(
    name="tiny", model=ModelConfig(context=4, layers=1, heads=2, channels=8), batch_size=4, steps=10, delay=1
)  # fmt: skip
MACHINE = detect()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logger.add(lambda line: lines.append(str(line)), format="{message}")
    yield lines
    logger.remove(handler)


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=140), stream


def keep(config: Config, given: Config | None = None, **values: int) -> tuple[Path, Choice]:
    """Write a record of `config` as if it had been tuned, with other values than the defaults."""
    resolved = resolve(apply_overrides(config, ["model.vocab_size=65"]), 2)
    choice = msgspec.structs.replace(Choice.of(resolved), **values)
    given_settings = pinned(given) if given else {}
    path = record_path(config, MACHINE, given_settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = Record(
        machine="m", config="tiny", measured_with=given_settings, choice=choice, kept_defaults=False, reason="faster",
        seconds=1.0,
    )  # fmt: skip
    path.write_bytes(msgspec.json.encode(record))
    return path, choice


def test_a_trial_runs_the_pipeline_and_counts_tokens() -> None:
    config = apply_overrides(TINY, ["model.vocab_size=11", "steps=1000000"])
    trials = Trials(config, cores=2, seconds=0.0)
    default = Choice.of(resolve(config, 2))
    trial = trials(default)
    assert trial.tokens_per_s > 0
    assert trial.seconds > 0
    assert trials(default.changed(micro_batch=1, lanes=3, forward=1, channel_capacity=1)).tokens_per_s > 0


def test_tuning_is_shown_and_kept_and_picked_up(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    class Faster(Trials):
        """Figures by which one lane is faster, with the same micro-batch, and so are many slots."""

        def __call__(self, choice: Choice) -> Trial:
            lanes = 1.5 if (choice.lanes, choice.micro_batch) == (1, 2) else 1.0
            return Trial(1000.0 * lanes * (1.1 if choice.slots > 6 else 1.0), 0.001)

    monkeypatch.setattr(tune, "Trials", Faster)
    monkeypatch.setattr(tune, "available_cores", lambda: 2)
    console, stream = plain_console()
    findings = run_tuning(TINY, 5.0, console)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "lanes=1" in shown
    assert "Changes the rounding, and is kept in the run's config.json: lanes=1" in shown
    assert "Without any change to the weights:" in shown
    assert any("65 random tokens" in line for line in said)
    assert findings.chosen.lanes == 1

    path = record_path(TINY, MACHINE)
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    assert (record.choice, record.kept_defaults, record.config) == (findings.chosen, False, "tiny")
    filled = tuned_settings(TINY, MACHINE)
    assert Choice.of(resolve(apply_overrides(filled, ["model.vocab_size=30"]), 2)) == findings.chosen
    assert sum("tuned for this machine" in line for line in said) == 1


def test_the_defaults_are_kept_in_a_record_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(Trials):
        def __call__(self, choice: Choice) -> Trial:
            return Trial(1000.0, 0.01)

    monkeypatch.setattr(tune, "Trials", Flat)
    console, stream = plain_console()
    run_tuning(TINY, 1.0, console)
    assert "the defaults stay" in stream.getvalue()
    assert record_path(TINY, MACHINE).exists()
    assert tuned_settings(TINY, MACHINE) == TINY


def test_each_precision_and_way_of_lanes_has_a_record_of_its_own() -> None:
    settings = ("precision=float32", "precision=bf16", "precision=fp16", "shared_lanes=true", "shared_lanes=false")
    paths = {record_path(apply_overrides(TINY, [setting]), MACHINE) for setting in settings}
    assert len(paths) == len(settings)


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bfloat16 be far faster than float32."""
    monkeypatch.setattr(precision, "speed_matters", lambda: True)
    monkeypatch.setattr(speeds, "speeds_here", lambda: Speeds(float32=200, bf16=1200, bf16x3=350, fp16=90))


@pytest.mark.parametrize(
    ("open_one", "settled"), [("precision=auto", "precision=bf16"), ("matmul=high", "precision=bf16x3")]
)
@pytest.mark.usefixtures("with_tiles")
def test_a_record_is_of_the_precision_that_was_computed_in(
    monkeypatch: pytest.MonkeyPatch, open_one: str, settled: str
) -> None:
    class Slots(Trials):
        def __call__(self, choice: Choice) -> Trial:
            assert self.config.precision.value == settled.partition("=")[2]
            return Trial(2000.0 if choice.slots > 6 else 1000.0, 0.001)

    monkeypatch.setattr(tune, "Trials", Slots)
    monkeypatch.setattr(tune, "available_cores", lambda: 2)
    monkeypatch.setattr(tune, "compile_kernels", lambda precision: None)
    asked = apply_overrides(TINY, [open_one])
    findings = run_tuning(asked, 5.0, plain_console()[0])
    assert not {"matrix product", "BLAS threads"} & {row.axis for row in findings.compared}
    path = record_path(apply_overrides(TINY, [settled]), MACHINE)
    assert path.exists()
    assert path == record_path(asked, MACHINE) != record_path(TINY, MACHINE)
    assert (tuned_settings(asked, MACHINE).slots or 0) > 6
    assert tuned_settings(TINY, MACHINE) == TINY


@pytest.mark.usefixtures("with_tiles")
def test_tuning_a_slow_precision_says_that_it_is_slow(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    class Flat(Trials):
        def __call__(self, choice: Choice) -> Trial:
            return Trial(1000.0, 0.01)

    monkeypatch.setattr(tune, "Trials", Flat)
    monkeypatch.setattr(tune, "compile_kernels", lambda precision: None)
    run_tuning(apply_overrides(TINY, ["precision=fp16"]), 0.5, plain_console()[0])
    assert sum("precision=fp16 was asked for, and is slower here" in line for line in said) == 1


def test_what_is_given_stands_and_a_record_for_other_settings_is_left_out(said: list[str]) -> None:
    keep(TINY, lanes=1, slots=9)
    open_lanes = tuned_settings(TINY, MACHINE)
    assert (open_lanes.lanes, open_lanes.slots) == (1, 9)
    given = apply_overrides(TINY, ["lanes=4"])
    assert tuned_settings(given, MACHINE) == given
    assert "measured without lanes=4" in said[-1]
    _, choice = keep(given, given, lanes=4, slots=7)
    assert tuned_settings(given, MACHINE).slots == choice.slots == 7


@pytest.mark.parametrize(
    "override",
    ["model.vocab_size=65", "model.context=8", "model.channels=10", "batch_size=8", "gradient_accumulation_steps=2",
     "delay=0"],
)  # fmt: skip
def test_a_record_is_for_one_model_batch_and_delay(override: str) -> None:
    keep(TINY, slots=9)
    other = apply_overrides(TINY, [override])
    assert tuned_settings(other, MACHINE) == other
    assert tuned_settings(apply_overrides(TINY, ["seed=5", "optimizer.lr=0.1"]), MACHINE).slots == 9


def test_a_record_is_for_one_machine_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(TINY, slots=9)
    assert tuned_settings(TINY, replace(MACHINE, logical_cores=97)) == TINY
    monkeypatch.setattr(tune, "version", lambda name: "97.0")
    assert tuned_settings(TINY, MACHINE) == TINY


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"choice": 1}', b"[]"])
def test_a_damaged_record_is_named_and_left_out(content: bytes, said: list[str]) -> None:
    path, _ = keep(TINY, slots=9)
    path.write_bytes(content)
    assert tuned_settings(TINY, MACHINE) == TINY
    assert str(path) in said[-1]


def test_a_record_with_impossible_values_is_refused_by_name() -> None:
    path, _ = keep(TINY, slots=9)
    path.write_bytes(path.read_bytes().replace(b'"slots":9', b'"slots":-9'))
    with pytest.raises(ValueError, match="slots"):
        resolve(apply_overrides(tuned_settings(TINY, MACHINE), ["model.vocab_size=65"]), 2)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_no_time_is_refused(budget: float) -> None:
    with pytest.raises(TuningError, match="--budget"):
        run_tuning(TINY, budget)


def test_the_table_and_the_sentences_are_functions_of_the_findings() -> None:
    default = Choice.of(resolve(apply_overrides(TINY, ["model.vocab_size=65"]), 2))
    facts = Facts(2, 4, 4, (Gemm.NUMBA,))

    def speed(choice: Choice) -> Trial:
        return Trial(2.0 if choice.slots > default.slots else 1.0, 1.0)

    findings: Findings = search(default, facts, speed, 60.0)
    table = table_of(findings)
    assert table.row_count == len(findings.compared)
    sentences = conclusions(findings)
    assert "2.00 times the defaults" in sentences[0]
    assert not any("rounding" in sentence for sentence in sentences)
    assert any("--budget" in sentence for sentence in sentences)
