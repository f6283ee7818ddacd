"""Tuning of a model of a few hundred parameters: measured, printed, stored, and read again by `train`."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from threadloom.stages import speeds
from threadloom.stages.config import Config, Gpt2Config, Precision
from threadloom.stages.config.settings import Gemm
from threadloom.stages.machine.machine import detect
from threadloom.stages.resolve import precision
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.tuning_record import TunedSettings, TuningRecord, record_path, with_tuned_settings
from threadloom.stages.speeds import Speeds
from threadloom.stages.tools.tune import tuning
from threadloom.stages.tools.tune.search import SearchResult, Trial, search
from threadloom.stages.tools.tune.space import Limits
from threadloom.stages.tools.tune.table import conclusions, trials_table
from threadloom.stages.tools.tune.tuning import Trials, TuningError, run_tuning

TINY = Config(
    name="tiny", model=Gpt2Config(context=4, layers=1, heads=2, channels=8), batch_size=4, steps=10, delay=1
)  # fmt: skip
MACHINE = detect()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(MACHINE.logical_cores))  # no limit below the cores
    return tmp_path / "cache"


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=140), stream


def test_a_trial_runs_the_pipeline_and_counts_tokens() -> None:
    config = apply_overrides(TINY, ["model.vocab_size=11", "steps=1000000"])
    trials = Trials(config, cores=2, seconds=0.0)
    default = TunedSettings.of(resolve(config, 2))
    trial = trials(default)
    assert trial.tokens_per_s > 0
    assert trial.seconds > 0
    assert trials(default.changed(micro_batch=1, lanes=3, forward=1, channel_capacity=1)).tokens_per_s > 0


def test_tuning_is_printed_stored_and_used(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    class Faster(Trials):
        """Made-up rates: one lane is faster with the same micro-batch, and so are many slots."""

        def __call__(self, choice: TunedSettings) -> Trial:
            lanes = 1.5 if (choice.lanes, choice.micro_batch) == (1, 2) else 1.0
            return Trial(1000.0 * lanes * (1.1 if choice.slots > 6 else 1.0), 0.001)

    monkeypatch.setattr(tuning, "Trials", Faster)
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    console, stream = plain_console()
    findings = run_tuning(TINY, 5.0, console=console)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "lanes=1" in shown
    assert "Changes the rounding, and is kept in the run's config.json: lanes=1" in shown
    assert "Without any change to the weights:" in shown
    assert any("65 random tokens" in line for line in logged)
    assert findings.search.chosen.lanes == 1

    path = record_path(TINY, MACHINE)
    record = msgspec.json.decode(path.read_bytes(), type=TuningRecord)
    assert (record.choice, record.kept_defaults, record.config) == (findings.search.chosen, False, "tiny")
    filled = with_tuned_settings(TINY, MACHINE)
    assert TunedSettings.of(resolve(apply_overrides(filled, ["model.vocab_size=30"]), 2)) == findings.search.chosen
    assert sum("tuned for this machine" in line for line in logged) == 1


def test_the_defaults_are_kept_in_a_record_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            return Trial(1000.0, 0.01)

    monkeypatch.setattr(tuning, "Trials", Flat)
    console, stream = plain_console()
    run_tuning(TINY, 1.0, console=console)
    assert "the defaults are kept" in stream.getvalue()
    assert record_path(TINY, MACHINE).exists()
    assert with_tuned_settings(TINY, MACHINE) == TINY


def test_a_result_that_cannot_be_kept_is_announced_before_the_first_trial(
    monkeypatch: pytest.MonkeyPatch, logged: list[str], tmp_path: Path
) -> None:
    class Flat(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            assert any("can only be printed" in line and "THREADLOOM_CACHE" in line for line in logged)
            return Trial(1000.0, 0.01)

    (tmp_path / "file").touch()
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path / "file/folder"))  # nobody can create it
    monkeypatch.setattr(tuning, "Trials", Flat)
    console, stream = plain_console()
    run_tuning(TINY, 1.0, console=console)
    assert "Not kept in" in stream.getvalue()


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine on which bfloat16 is much faster than float32."""
    monkeypatch.setattr(precision, "speed_matters", lambda: True)
    monkeypatch.setattr(speeds, "speeds_here", lambda: Speeds(float32=200, bf16=1200, bf16x3=350, fp16=90))


@pytest.mark.parametrize(
    ("open_one", "settled"),
    [("precision=auto", "precision=bf16"), ("float32_matmul_precision=high", "precision=bf16x3")],
)
@pytest.mark.usefixtures("with_tiles")
def test_a_record_belongs_to_the_precision_of_the_run(
    monkeypatch: pytest.MonkeyPatch, open_one: str, settled: str
) -> None:
    class Slots(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            assert self.config.precision.value == settled.partition("=")[2]
            return Trial(2000.0 if choice.slots > 6 else 1000.0, 0.001)

    monkeypatch.setattr(tuning, "Trials", Slots)
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    monkeypatch.setattr(tuning, "compile_kernels_of", lambda config: None)
    asked = apply_overrides(TINY, [open_one])
    findings = run_tuning(asked, 5.0, console=plain_console()[0])
    assert not {"GEMM", "BLAS threads"} & {row.dimension for row in findings.search.compared}
    path = record_path(apply_overrides(TINY, [settled]), MACHINE)
    assert path.exists()
    assert path == record_path(asked, MACHINE) != record_path(TINY, MACHINE)
    assert (with_tuned_settings(asked, MACHINE).slots or 0) > 6
    assert with_tuned_settings(TINY, MACHINE) == TINY


def test_no_trial_has_more_threads_than_the_process_may_use(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    tried: list[TunedSettings] = []

    class OneLane(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            tried.append(choice)
            return Trial(2000.0 if choice.channel_capacity == 4 else 1000.0, 0.001)

    monkeypatch.setattr(tuning, "Trials", OneLane)
    monkeypatch.setattr(tuning, "available_cores", lambda: 4)
    monkeypatch.setattr(tuning, "compile_kernels_of", lambda config: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_tuning(TINY, 5.0, console=plain_console()[0])
    assert len(tried) > 5
    assert {(one.forward, one.backward, one.reduce, one.update, one.blas) for one in tried} == {(1, 1, 1, 1, 1)}
    assert "threads: 1, by OMP_NUM_THREADS\n" in logged or MACHINE.logical_cores == 1
    assert with_tuned_settings(TINY, MACHINE, 1).channel_capacity == 4
    if MACHINE.logical_cores > 1:
        assert with_tuned_settings(TINY, MACHINE) == TINY, "they are not those of all cores"


@pytest.mark.usefixtures("with_tiles")
def test_tuning_warns_about_a_slow_precision(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    class Flat(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            return Trial(1000.0, 0.01)

    monkeypatch.setattr(tuning, "Trials", Flat)
    monkeypatch.setattr(tuning, "compile_kernels_of", lambda config: None)
    run_tuning(apply_overrides(TINY, ["precision=fp16"]), 0.5, console=plain_console()[0])
    assert sum("precision=fp16 is slower here" in line for line in logged) == 1


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_an_invalid_budget_is_refused(budget: float) -> None:
    with pytest.raises(TuningError, match="--budget"):
        run_tuning(TINY, budget)


def test_the_table_and_the_conclusions_are_functions_of_the_result() -> None:
    default = TunedSettings.of(resolve(apply_overrides(TINY, ["model.vocab_size=65"]), 2))
    limits = Limits(2, 4, 4, (Gemm.NUMBA,))

    def speed(choice: TunedSettings) -> Trial:
        return Trial(2.0 if choice.slots > default.slots else 1.0, 1.0)

    findings: SearchResult = search(default, limits, speed, 60.0)
    table = trials_table(findings)
    assert table.row_count == len(findings.compared)
    sentences = conclusions(findings)
    assert "2.00 times the defaults" in sentences[0]
    assert not any("rounding" in sentence for sentence in sentences)
    assert any("--budget" in sentence for sentence in sentences)


def test_a_trial_has_its_memory_and_the_load_of_its_stages() -> None:
    config = apply_overrides(TINY, ["model.vocab_size=11", "steps=1000000"])
    trials = Trials(config, cores=2, seconds=0.05)
    default = TunedSettings.of(resolve(config, 2))
    trial, larger = trials(default), trials(default.changed(slots=default.slots + 4))
    assert trial.memory is not None
    assert larger.memory is not None
    assert larger.memory > trial.memory > 0
    assert {"forward", "backward", "reduce", "update"} <= {stage.name for stage in trial.stages}
    assert all(stage.busy + stage.waiting + stage.blocked == pytest.approx(1.0) for stage in trial.stages)


def test_a_trial_that_is_far_slower_than_the_defaults_is_stopped() -> None:
    config = apply_overrides(TINY, ["model.vocab_size=11", "steps=1000000"])
    trials = Trials(config, cores=2, seconds=60.0, limit=0.0)
    trial = trials(TunedSettings.of(resolve(config, 2)))
    assert trial.tokens_per_s == 0
    assert trial.seconds < 40


def test_the_picture_is_next_to_the_record_or_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Memory(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            return Trial(1000.0 + choice.lanes, 0.01, 1_000_000 * choice.slots)

    monkeypatch.setattr(tuning, "Trials", Memory)
    console, stream = plain_console()
    run_tuning(TINY, 1.0, console=console)
    beside = record_path(TINY, MACHINE).with_suffix(".png")
    assert beside.read_bytes().startswith(b"\x89PNG")
    assert f"Picture: {beside}" in stream.getvalue()
    run_tuning(TINY, 1.0, tmp_path / "here.png", console)
    assert (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")


def test_a_permitted_precision_is_chosen_and_its_record_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Precision] = []

    class Fast16(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            return Trial({Precision.BF16: 2000.0, Precision.FP16: 500.0}.get(self.config.precision, 1000.0), 0.01)

    monkeypatch.setattr(tuning, "Trials", Fast16)
    monkeypatch.setattr(tuning, "compile_kernels_of", lambda config: compiled.append(config.precision))
    console, stream = plain_console()
    run_tuning(TINY, 5.0, console=console, precisions=["bf16", "fp16"])
    assert {*compiled} == {Precision.FLOAT32, Precision.BF16, Precision.FP16}
    assert "Precision: precision=bf16 ran at 2.00 times precision=float32" in stream.getvalue()
    assert "train with --set precision=bf16" in stream.getvalue()
    assert record_path(apply_overrides(TINY, ["precision=bf16"]), MACHINE).exists()
    assert not record_path(TINY, MACHINE).exists()


def test_a_precision_that_is_not_faster_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(Trials):
        def __call__(self, choice: TunedSettings) -> Trial:
            return Trial(1000.0, 0.01)

    monkeypatch.setattr(tuning, "Trials", Flat)
    monkeypatch.setattr(tuning, "compile_kernels_of", lambda config: None)
    console, stream = plain_console()
    run_tuning(TINY, 5.0, console=console, precisions=["any"])
    assert "precision=float32 is kept" in stream.getvalue()
    assert record_path(TINY, MACHINE).exists()
