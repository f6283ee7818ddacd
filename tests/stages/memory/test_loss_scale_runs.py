"""Runs with loss scaling: updates that are not finite are skipped, and the trajectory is one, resumed or not."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from loguru import logger

from tests.stages.support import (
    SEVERAL_CHUNKS,
    Result,
    assert_same,
    build,
    intercept,
    result,
    run_sequence,
    run_threads,
    story,
    tiny,
)
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation
from threadloom.pipeline import StageFailure
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE
from threadloom.stages.config import ConfigError
from threadloom.stages.memory.graph_items import Event, MicroBatch, MicroGradient, Update
from threadloom.stages.memory.loss_scale import MAX_SKIPPED
from threadloom.stages.run.session import train
from threadloom.stages.step.backward import Backward
from threadloom.stages.step.reducer import TrainingDiverged
from threadloom.stages.storage import RunMode, read_metrics
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

STEPS = 8
DYNAMIC = ("loss_scale.kind=dynamic", "loss_scale.initial=1024", "loss_scale.interval=2", f"steps={STEPS}")


def updates(events: Iterable[Event]) -> list[Update]:
    return [event for event in events if isinstance(event, Update)]


def poison(training: Training, wrong: Callable[[MicroGradient], bool], value: float = math.inf) -> Training:
    """Set one element of a lane to infinity after backward, as an overflow would."""

    def after(_: MicroBatch, made: MicroGradient) -> None:
        if wrong(made):
            training.lanes.flat[training.plan.lane_of(made.micro), 5] = value

    intercept(training, "backward", after=after)
    return training


def overflowing(limit: float) -> Callable[[MicroGradient], bool]:
    """Return a predicate: the last micro-batch overflows at scales above `limit`."""
    return lambda made: made.scale > limit and made.micro == 3


def scales(training: Training, events: list[Event]) -> tuple[list[float], list[int], Result]:
    """Return the scale of every update, the steps that were skipped, and the result of the run."""
    done = updates(events)
    assert all(update.scaled for update in done)
    used = [update.scaled.scale for update in done if update.scaled]
    return used, [update.step for update in done if update.scaled and update.scaled.skipped], result(training, events)


@pytest.mark.parametrize("initial", ["2", "1024", "16777216", "0.001953125"])
def test_a_power_of_two_changes_no_bit(initial: str) -> None:
    """All numbers of the backward pass, and the squares and roots of the norm, are scaled exactly."""
    for overrides in ((), ("delay=2", "lanes=3", *SEVERAL_CHUNKS), ("optimizer.clip=0.01",)):
        plain = build(tiny(*overrides), evaluate=True)
        expected = result(plain, run_threads(plain))
        scaled = build(tiny(*overrides, "loss_scale.kind=static", f"loss_scale.initial={initial}"), evaluate=True)
        used, skipped, found = scales(scaled, run_threads(scaled))
        assert set(used) == {float(initial)}
        assert not skipped
        assert_same(found, expected)


def test_another_scale_is_divided_out_up_to_rounding() -> None:
    common = (*SMALL_STEPS, "steps=4")
    plain = build(tiny(*common))
    scaled = build(tiny(*common, "loss_scale.kind=static", "loss_scale.initial=1000"))
    expected = expectation(plain)
    results = []
    for training in (plain, scaled):
        events = run_sequence(training)
        assert_expected(training, events, expected)
        results.append(result(training, events))
    assert results[0].updates != results[1].updates, "the scale is no power of two"


def test_a_scale_that_grows_by_powers_of_two_changes_no_bit_either() -> None:
    plain = build(tiny("delay=1", f"steps={STEPS}"))
    expected = result(plain, run_threads(plain))
    grown = build(tiny("delay=1", *DYNAMIC))
    used, _, found = scales(grown, run_threads(grown))
    assert used == [1024, 1024, 1024, 2048, 2048, 2048, 4096, 4096]
    assert_same(found, expected)


THREADS = [
    tuple(f"threads.{stage}={count}" for stage in ("embed", "forward", "backward", "reduce", "update"))
    for count in (1, 3)
]

SKIPS = {0: ([1024, 512, 256, 256, 512, 256, 256, 512], [1, 2, 5, 8]),
         1: ([1024, 1024, 512, 512, 256, 256, 256, 512], [1, 2, 3, 4, 8]),
         2: ([1024, 1024, 1024, 512, 512, 512, 256, 256], [1, 2, 3, 4, 5, 6])}  # fmt: skip
"""Delay → the scale of every batch and the skipped steps, if all scales above 256 overflow."""


@pytest.mark.parametrize("delay", SKIPS)
def test_pipeline_and_replay_skip_the_same_updates_and_compute_the_same_bits(delay: int, tmp_path: Path) -> None:
    common = (f"delay={delay}", *DYNAMIC, *SEVERAL_CHUNKS, "evaluation.interval=3", "checkpoint.interval=3")
    alone = poison(build(tiny(*common), tmp_path / "replay", evaluate=True), overflowing(256))
    used, skipped, expected = scales(alone, run_sequence(alone))
    assert (used, skipped) == SKIPS[delay]
    for number, threads in enumerate(THREADS):
        sizes = (f"slots={number + 1}", f"channel_capacity={number + 1}", f"extra_banks={number}")
        config = tiny(*common, *threads, *sizes, f"checkpoint.copies={'true' if number else 'false'}")
        training = poison(build(config, tmp_path / f"{number}", evaluate=True), overflowing(256))
        again, left_out, found = scales(training, run_threads(training))
        assert (again, left_out) == SKIPS[delay]
        assert_same(found, expected)


@pytest.mark.timeout(300)  # the kernels of 16 bits may have to be compiled
@pytest.mark.parametrize("delay", [0, 1])
def test_float16_overflows_and_recovers_along_one_trajectory(delay: int, tmp_path: Path) -> None:
    """A real overflow: gradients of the tiny model exceed 65,504 at this scale. Dynamic scaling is the default."""
    common = ("precision=fp16", f"delay={delay}", "loss_scale.initial=4194304", "loss_scale.interval=3", "steps=10")
    alone = build(tiny(*common))
    used, skipped, expected = scales(alone, run_sequence(alone))
    assert used[: delay + 1] == [2.0**22] * (delay + 1)
    assert skipped[: delay + 1] == list(range(1, delay + 2))
    assert len(skipped) <= 8, "it recovers"
    training = build(tiny(*common, *THREADS[1], "checkpoint.interval=4", "checkpoint.keep=0"), tmp_path)
    again, left_out, found = scales(training, run_threads(training))
    assert (again, left_out) == (used, skipped)
    assert repr(found.updates) == repr(expected.updates)  # norms may be nan
    resumed = build(tiny(*common), start=Checkpoint.open(tmp_path / "step-000004"))
    rest, _, end = scales(resumed, run_threads(resumed))
    assert rest == used[4:]
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)
        np.testing.assert_array_equal(end.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_skipped_update_changes_nothing_but_the_learning_rate(delay: int) -> None:
    """The updates from batches 2 and 3 are skipped: versions 3 and 4 and the moments have the bits of version 2."""

    def state(steps: int) -> Result:
        training = build(tiny(f"delay={delay}", *DYNAMIC, f"steps={steps}", f"schedule.decay_steps={STEPS}"))
        return result(training, run_threads(poison(training, lambda made: made.batch in (2, 3))))

    before, first, second = state(2), state(3), state(4)
    for later, version in ((first, 3), (second, 4)):
        for name, tensor in before.tensors.items():
            now = name.replace("version 2 ", f"version {version} ")
            if "version" not in name or "version 2 " in name:
                np.testing.assert_array_equal(later.tensors[now], tensor, err_msg=now)
    assert [norm for _, _, _, norm in second.updates][2:] == [math.inf, math.inf]
    plain = build(tiny(f"delay={delay}", f"steps={STEPS}"))
    rates = [update.lr for update in updates(run_sequence(plain))]
    assert [lr for _, _, lr, _ in second.updates] == rates[:4]


def test_bias_corrections_count_applied_updates() -> None:
    """If the first updates are skipped, the first applied one has the bias corrections of update 1."""
    constant = ("schedule.kind=constant", "schedule.warmup=0", "optimizer.clip=0", "loss_scale.kind=static")
    skipping = poison(build(tiny(*constant, "steps=4")), lambda made: made.batch < 3)
    steps = []
    intercept(skipping, "update", lambda shard: steps.append(shard.step))
    run_sequence(skipping)
    assert {(step.bias_correction1, step.bias_correction2) for step in steps} == {(1 - 0.9, 1 - 0.95)}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_inf_and_nan_are_skipped(value: float) -> None:
    training = poison(build(tiny(*DYNAMIC, "steps=3")), lambda made: made.batch == 1, value)
    _, skipped, found = scales(training, run_threads(training))
    assert skipped == [2]
    assert all(np.isfinite(bits.view(np.float32)).all() for bits in found.tensors.values())


def test_a_loss_that_is_not_finite_is_skipped_too() -> None:
    training = build(tiny(*DYNAMIC, "steps=3"))
    backward = training.backward

    class NanLoss:
        acquire = staticmethod(backward.acquire)

        def __call__(self, item: MicroBatch) -> MicroGradient:
            made = backward(item)
            wrong = (made.batch, made.micro) == (1, 2)
            return replace(made, loss=math.nan) if wrong else made

    setattr(training, "backward", NanLoss())  # noqa: B010 - a stage that is no Backward
    done = updates(run_sequence(training))
    assert [update.scaled and update.scaled.skipped for update in done] == [False, True, False]
    assert math.isnan(done[1].loss or 0.0)
    assert math.isfinite(done[1].grad_norm)
    assert math.isfinite(done[2].loss or math.nan)


@pytest.mark.parametrize(
    ("overrides", "update", "reason"),
    [
        (("loss_scale.kind=none",), 3, "losses are not scaled"),
        (("loss_scale.kind=static",), 2 + MAX_SKIPPED, f"{MAX_SKIPPED} consecutive updates overflowed at a loss scale"),
        (("loss_scale.kind=dynamic",), 27, "the loss scale is 6.10352e-05, the lowest allowed"),
    ],
)
def test_a_run_that_does_not_recover_fails(overrides: tuple[str, ...], update: int, reason: str) -> None:
    training = poison(build(tiny("steps=40", *overrides)), lambda made: made.batch >= 2)
    with pytest.raises(StageFailure) as caught:
        run_threads(training)
    assert isinstance(caught.value.__cause__, TrainingDiverged)
    for part in (f"the gradient of update {update} has norm inf", "expected a finite number", reason, "optimizer.lr"):
        assert part in str(caught.value.__cause__)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", SKIPS)
def test_from_any_step_a_run_resumes_with_the_same_scales_and_bits(delay: int, tmp_path: Path) -> None:
    common = (f"delay={delay}", *DYNAMIC, "checkpoint.interval=1", "checkpoint.keep=0")
    copies = f"checkpoint.copies={'false' if delay == 1 else 'true'}"
    whole = poison(build(tiny(*common, copies), tmp_path), overflowing(256))
    used, _, expected = scales(whole, run_threads(whole))
    for step in range(1, STEPS):
        start = Checkpoint.open(tmp_path / f"step-{step:06d}")
        for threads, run in zip(THREADS, (run_sequence, run_threads), strict=True):
            training = poison(build(tiny(*common, *threads), start=start), overflowing(256))
            again, _, found = scales(training, run(training))
            assert again == used[step:]
            assert_same(found, Result(expected.tensors, expected.updates[step:], (), ()))


@pytest.mark.parametrize(("delay", "step"), [(1, 3), (2, 5)])
def test_the_states_of_the_older_versions_matter(delay: int, step: int, tmp_path: Path) -> None:
    """A run that started from the newest state alone would have other scales: the test above can fail."""
    common = (f"delay={delay}", *DYNAMIC, "checkpoint.interval=1", "checkpoint.keep=0")
    whole = poison(build(tiny(*common), tmp_path), overflowing(256))
    used, _, _ = scales(whole, run_threads(whole))
    training = build(tiny(*common), start=Checkpoint.open(tmp_path / f"step-{step:06d}"))
    with training.banks.lease(step) as newest, training.banks.lease(step - delay) as oldest:
        assert newest.bank.scaler.scale != oldest.bank.scaler.scale
        oldest.bank.scaler = newest.bank.scaler
    again, _, _ = scales(training, run_threads(poison(training, overflowing(256))))
    assert again != used[step:]


def test_a_checkpoint_without_states_starts_with_the_initial_scale(tmp_path: Path) -> None:
    """Checkpoints of runs without scaling, and of versions without loss scaling, have the same manifest."""
    config = tiny("steps=3", "schedule.decay_steps=6")
    run_threads(build(config, tmp_path))
    path = tmp_path / "step-000003"
    assert "scalers" not in json.loads((path / MANIFEST_FILE).read_text())
    start = Checkpoint.open(path)
    assert start.scalers == {}
    plain, scaled = build(tiny(), start=start), build(tiny("loss_scale.kind=dynamic"), start=start)
    expected = result(plain, run_threads(plain))
    assert_same(result(scaled, run_threads(scaled)), expected)


# --- reports -----------------------------------------------------------------------------------------------


def test_a_run_directory_records_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Backward.__call__

    def overflow(self: Backward, item: MicroBatch) -> MicroGradient:
        lane = self._lanes.plan.lane_of(item.micro)
        made = backward(self, item)
        if made.scale > 256:
            self._lanes.flat[lane, 5] = math.inf
        return made

    monkeypatch.setattr(Backward, "__call__", overflow)
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO", format="{message}")
    settings = ("loss_scale.kind=dynamic", "loss_scale.interval=3", "delay=1", "schedule.decay_steps=9")
    try:
        for steps, mode in ((3, RunMode.NEW), (9, RunMode.RESUME)):
            train(story(tmp_path, *settings, f"steps={steps}"), tmp_path / "run", mode)
        train(story(tmp_path, *settings, "steps=9"), tmp_path / "whole")
    finally:
        logger.remove(sink)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    whole = [r for r in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in r]
    picked = [[(r["step"], r["loss"], r["loss_scale"], r["skipped"]) for r in part] for part in (records, whole)]
    assert picked[0] == picked[1]
    assert [r["loss_scale"] for r in records] == [1024, 1024, 512, 512, 256, 256, 256, 256, 512]
    said = [line for line in lines if "update skipped" in line]
    assert len(said) == 2 * sum(r["skipped"] for r in records)
    assert said[0] == (
        "step 1: update skipped, its loss or gradient is not finite at a loss scale of 1,024 (now 512); "
        "1 skipped in total"
    )
    assert any("loss scale 256 (5 skipped)" in line for line in lines), lines
    image = matplotlib.image.imread(tmp_path / "run" / "loss.png")
    assert image.shape[0] > 728, "the picture has a third panel, for the scale"

    for setting in ("loss_scale.kind=static", "loss_scale.kind=none", "loss_scale.interval=4"):
        with pytest.raises(ConfigError, match="started with"):
            train(story(tmp_path, *settings, setting, "steps=10"), tmp_path / "run", RunMode.RESUME)
