"""`threadloom tune --goal loss=...` on a tiny model."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from threadloom.pipeline import StageFailure
from threadloom.stages.cli import main
from threadloom.stages.config import Config, ConfigError, Gpt2Config, OptimizerConfig, Precision
from threadloom.stages.data import TokenBatches
from threadloom.stages.resolve import TunedSettings, apply_overrides, load_config, resolve, to_json
from threadloom.stages.tools.tune import goal
from threadloom.stages.tools.tune.delays import DelayChoice, DelaySpeed
from threadloom.stages.tools.tune.goal import Goal, _result, run_goal
from threadloom.stages.tools.tune.halving import HalvingResult, Pilot
from threadloom.stages.tools.tune.pilots import RateChoice, pilots_on_text
from threadloom.stages.tools.tune.search import SearchResult
from threadloom.stages.tools.tune.tuning import Tuning

pytestmark = pytest.mark.timeout(120)

TINY = Config(
    name="tiny", model=Gpt2Config(context=8, layers=1, heads=2, channels=8), batch_size=4, steps=100,
    optimizer=OptimizerConfig(lr=1e-2),
)  # fmt: skip


@pytest.mark.parametrize(("text", "loss"), [("throughput", None), ("loss=1.9", 1.9), ("loss=.5", 0.5), ("loss=2", 2.0)])
def test_goals(text: str, loss: float | None) -> None:
    assert Goal.parse(text).loss == loss


@pytest.mark.parametrize(
    "text", ["", "loss", "loss=", "loss=-1", "loss=0", "loss=nan", "loss=1e3", "speed", "loss=1.9 "]
)
def test_other_goals_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--goal"):
        Goal.parse(text)


def test_a_goal_is_searched_for_and_the_choice_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path / "cache"))
    config, text, out = (tmp_path / name for name in ("tiny.json", "text.txt", "tuned.json"))
    config.write_text(to_json(TINY))
    text.write_text("one two three four five six seven " * 200)
    arguments = ["tune", "--config", str(config), "--text", str(text), "--goal", "loss=1.5", "--budget", "6"]
    answer = CliRunner().invoke(main, [*arguments, "--write", str(out)])
    assert answer.exit_code == 0, answer.output
    assert "times as fast and needs" in answer.output
    assert "learning rate" in answer.output
    chosen = load_config(str(out))
    assert chosen.delay in (0, 1, 2)
    assert chosen.steps >= 1
    assert chosen.micro_batch is not None
    answer = CliRunner().invoke(main, ["train", "--config", str(out), "--steps", "3", "--out", str(tmp_path / "run")])
    assert answer.exit_code == 0, answer.output


def test_the_delays_and_the_pilots_have_the_precision_that_the_tuning_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, seen, out = list[Sequence[str]](), list[Precision](), tmp_path / "tuned.json"
    default = TunedSettings.of(resolve(apply_overrides(TINY, ["model.vocab_size=9"]), 2))

    def tuned(config: Config, budget: float, picture: Path | None, console: Console, names: Sequence[str]) -> Tuning:
        asked.append(names)
        return Tuning(Precision.BF16, SearchResult(default, default, "", None, None, (), (), (), (), 0.0))

    def delays(config: Config, tuned: TunedSettings, budget: float) -> list[DelaySpeed]:
        seen.append(config.precision)
        return [DelaySpeed(delay, (1000.0, 1000.0)) for delay in (0, 1, 2)]

    def rates(config: Config, tokens_per_s: float, budget: float) -> None:
        seen.append(config.precision)

    monkeypatch.setattr(goal, "run_tuning", tuned)
    monkeypatch.setattr(goal, "_measure_delays", delays)
    monkeypatch.setattr(goal, "_search_rates", rates)
    run_goal(TINY, Goal(1.5), 1.0, out, precisions=["any"])
    assert asked == [["any"]]
    assert seen == [Precision.BF16] * 2
    assert load_config(str(out)).precision is Precision.BF16


def test_a_goal_without_a_number_is_an_error_of_one_line() -> None:
    answer = CliRunner().invoke(main, ["tune", "--goal", "loss=low"])
    assert answer.exit_code == 1
    assert "loss=NUMBER" in answer.output


@pytest.mark.parametrize(("delay", "warmup"), [(0, 10), (1, 15), (2, 35)])
def test_a_delay_lengthens_the_warm_up_that_the_pilots_found_without_one(delay: int, warmup: int) -> None:
    best = RateChoice(1e-2, 0.1, 100)
    halving = HalvingResult((Pilot(best, 50, 3.0, 1.0), Pilot(best, 100, 2.0, 2.0)), best, complete=True)
    config = _result(TINY, 1.5, DelayChoice(delay, ()), halving, 1000.0).config
    assert (config.delay, config.schedule.warmup) == (delay, warmup)


def test_a_pilot_that_diverges_has_an_infinite_loss_and_another_failure_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven " * 100)
    config = msgspec.structs.replace(TINY, data=msgspec.structs.replace(TINY.data, text=(str(text),)))
    with pilots_on_text(config, 1, None) as train:
        assert math.isinf(train(RateChoice(1e3, 0.0, 20), 20).loss)
        assert train(RateChoice(1e-3, 0.0, 20), 20).loss < 10.0

        def fail(*_: object) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr(TokenBatches, "fill", fail)
        with pytest.raises(StageFailure, match="the disk is gone"):
            train(RateChoice(1e-3, 0.0, 20), 20)
