"""A resumed run continues the trajectory of an uninterrupted one: at every τ, from every step."""

import json
from pathlib import Path

import pytest

from tests.stages.support import Result, assert_same, build, result, run_sequence, run_threads, story, tiny
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import ConfigError
from threadloom.stages.data.token_file import DataError
from threadloom.stages.resolve import resolution
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.run import saved_config, session, train
from threadloom.stages.storage import RunMode, read_metrics

pytestmark = pytest.mark.timeout(60)

STEPS = 7


Setup = tuple[int, str, int, int]
"""Delay, correction, the number of synchronous updates, and the updates from one rotated basis to the next."""


def settings(setup: Setup) -> tuple[str, ...]:
    delay, correction, synchronous, rotation = setup
    return (
        f"delay={delay}", f"delay_correction={correction}", f"steps={STEPS}", "evaluation.interval=2",
        f"schedule.synchronous={synchronous}", f"optimizer.rotation={rotation}",
        "checkpoint.interval=1", "checkpoint.keep=0",
    )  # fmt: skip


SETUPS = [
    (0, "none", 0, 0), (1, "none", 0, 0), (2, "none", 0, 0), (1, "auto", 0, 0), (2, "lead", 0, 0),
    (3, "forecast", 0, 0), (2, "auto", 0, 0), (2, "auto", 3, 0), (1, "none", 3, 0), (1, "none", 0, 3),
    (2, "auto", 2, 2),
]  # fmt: skip


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: "-".join(map(str, setup)))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, Path, Result]:
    """The setup, the folder and the result of an uninterrupted run with a checkpoint after every update."""
    folder = tmp_path_factory.mktemp("whole")
    copies = "false" if SETUPS.index(request.param) % 2 else "true"
    training = build(tiny(*settings(request.param), f"checkpoint.copies={copies}"), folder, evaluate=True)
    return request.param, folder, result(training, run_threads(training))


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("threads", [1, 3])
def test_from_any_step_and_with_other_threads_the_bits_are_the_same(
    whole: tuple[Setup, Path, Result], step: int, threads: int
) -> None:
    setup, folder, expected = whole
    other = (f"threads.{stage}={threads}" for stage in ("embed", "forward", "backward", "reduce", "update"))
    config = tiny(*settings(setup), *other, f"slots={threads + 1}", f"channel_capacity={threads}", "extra_banks=0")
    training = build(config, evaluate=True, start=Checkpoint.open(folder / f"step-{step:06d}"))
    found = result(training, run_threads(training))
    tail = Result(
        expected.tensors, expected.updates[step:], tuple(e for e in expected.evaluations if e[0] > step), saved=()
    )
    assert_same(found, tail)


def test_the_replay_resumes_too(whole: tuple[Setup, Path, Result]) -> None:
    setup, folder, expected = whole
    training = build(tiny(*settings(setup)), start=Checkpoint.open(folder / "step-000003"))
    found = result(training, run_sequence(training))
    assert_same(found, Result(expected.tensors, expected.updates[3:], (), ()))


@pytest.mark.parametrize("whole", SETUPS[1:], indirect=True, ids=lambda setup: "-".join(map(str, setup)))
def test_the_older_versions_of_a_checkpoint_matter(whole: tuple[Setup, Path, Result]) -> None:
    """At τ > 0, a run started from the newest version alone leaves the trajectory: the tests above can fail."""
    setup, folder, expected = whole
    training = build(tiny(*settings(setup)), start=Checkpoint.open(folder / "step-000004"))
    with training.banks.lease(4) as newest, training.banks.lease(4 - setup[0]) as oldest:
        oldest.bank.arena.flat[...] = newest.bank.arena.flat
    found = result(training, run_threads(training))
    assert found.updates != expected.updates[4:]


def files(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training.json"}


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(run / "metrics.jsonl") if "loss" in record]


class TestRun:
    """Resuming in a run directory."""

    @pytest.mark.parametrize("delay", [0, 2])
    def test_a_run_in_three_parts_equals_an_uninterrupted_run(self, delay: int, tmp_path: Path) -> None:
        common = (f"delay={delay}", "steps=9", "schedule.decay_steps=9", "evaluation.interval=3")
        train(story(tmp_path, *common), tmp_path / "whole")
        for steps, mode in ((2, RunMode.NEW), (5, RunMode.RESUME), (9, RunMode.RESUME)):
            threads = (f"steps={steps}", f"threads.forward={steps % 3 + 1}", "threads.backward=2")
            outcome = train(story(tmp_path, *common, *threads), tmp_path / "parts", mode)
            assert outcome.step == steps
        assert files(tmp_path / "parts", 9) == files(tmp_path / "whole", 9)
        assert losses(tmp_path / "parts") == losses(tmp_path / "whole")

    def test_a_run_of_a_version_without_shared_lanes_is_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A new run with the same settings would share its lanes and compute other bits."""
        monkeypatch.setattr(resolution, "SHARED_LANE_ELEMENTS", 0)
        monkeypatch.setattr(session, "available_cores", lambda: 4)
        common = ("batch_size=8", "schedule.decay_steps=6")
        assert resolution.resolve(story(tmp_path, *common, "model.vocab_size=30"), 4).shared_lanes
        train(story(tmp_path, *common, "shared_lanes=false", "steps=6"), tmp_path / "whole")
        train(story(tmp_path, *common, "shared_lanes=false", "steps=3"), tmp_path / "run")
        path = tmp_path / "run" / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "shared_lanes"}))
        train(apply_overrides(saved_config(tmp_path / "run"), ["steps=6"]), tmp_path / "run", RunMode.RESUME)
        assert files(tmp_path / "run", 6) == files(tmp_path / "whole", 6)

    def test_a_damaged_token_file_is_rebuilt_and_the_run_continues(self, tmp_path: Path) -> None:
        common = ("steps=6", "schedule.decay_steps=6")
        train(story(tmp_path, *common), tmp_path / "whole")
        train(story(tmp_path, *common, "steps=3"), tmp_path / "run")
        tokens = tmp_path / "run" / "data" / "train.npy"
        tokens.write_bytes(tokens.read_bytes()[:-100])
        train(story(tmp_path, *common), tmp_path / "run", RunMode.RESUME)
        assert files(tmp_path / "run", 6) == files(tmp_path / "whole", 6)

    @pytest.mark.parametrize(
        "setting",
        ["delay=1", "optimizer.lr=0.5", "seed=3", "micro_batch=1", "lanes=1", "batch_size=8", "schedule.warmup=1",
         "model.layers=2", "gradient_accumulation_steps=2", "optimizer.clip=0.1"],
    )  # fmt: skip
    def test_a_changed_setting_of_the_trajectory_is_refused_by_name(self, setting: str, tmp_path: Path) -> None:
        train(story(tmp_path, "steps=2"), tmp_path / "run")
        before = (tmp_path / "run" / "config.json").read_bytes(), files(tmp_path / "run", 2)
        key = setting.partition("=")[0]
        with pytest.raises(ConfigError, match=r"started with") as caught:
            train(story(tmp_path, "steps=4", "schedule.decay_steps=2", setting), tmp_path / "run", RunMode.RESUME)
        assert caught.value.subject == key
        assert ("saved" in caught.value.got) and ("now" in caught.value.got)
        assert "--out" in str(caught.value.hint)
        assert ((tmp_path / "run" / "config.json").read_bytes(), files(tmp_path / "run", 2)) == before

    def test_another_text_is_refused(self, tmp_path: Path) -> None:
        config = story(tmp_path, "steps=2")
        train(config, tmp_path / "run")
        saved = files(tmp_path / "run", 2)
        (tmp_path / "text.txt").write_text("another text altogether, and long enough to be split in two parts. " * 20)
        with pytest.raises(DataError, match=r"text that the run was started with.*--out"):
            train(config, tmp_path / "run", RunMode.RESUME)
        assert files(tmp_path / "run", 2) == saved

    def test_a_finished_run_is_not_changed(self, tmp_path: Path) -> None:
        config = story(tmp_path, "steps=4")
        first = train(config, tmp_path / "run")
        before = losses(tmp_path / "run"), files(tmp_path / "run", 4)
        again = train(config, tmp_path / "run", RunMode.RESUME)
        assert (again.step, again.val_loss) == (4, first.val_loss)
        assert (losses(tmp_path / "run"), files(tmp_path / "run", 4)) == before

    def test_steps_cannot_be_below_the_updates_done(self, tmp_path: Path) -> None:
        train(story(tmp_path, "steps=4"), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"^steps: expected at least the 4 updates"):
            train(story(tmp_path, "steps=3", "schedule.decay_steps=4"), tmp_path / "run", RunMode.RESUME)
        assert saved_config(tmp_path / "run").steps == 4
