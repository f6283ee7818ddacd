"""The moving average of the weights: a plain computation in float64, under every guarantee, evaluated, saved."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stages.support import SEVERAL_CHUNKS, build, command, planned, result, run_sequence, run_threads, story, tiny
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.config import ConfigError
from threadloom.stages.memory.graph_items import Evaluation, Event, Update
from threadloom.stages.resolve import trajectory
from threadloom.stages.run import train
from threadloom.stages.step import ValidationLoss
from threadloom.stages.storage import read_metrics
from threadloom.stages.training.sequential import replay
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

DECAY = 0.7
COMMON = (f"optimizer.ema={DECAY}", "steps=5", "evaluation.interval=2", "checkpoint.interval=1", "checkpoint.keep=0")
THREADS = ("threads.forward=3", "threads.backward=2", "threads.reduce=2", "threads.update=3")


def average(training: Training) -> bytes:
    assert training.optimizer.average is not None
    return training.optimizer.average.arena.flat.tobytes()


def losses(events: list[Event]) -> dict[int, float | None]:
    return {event.step: event.ema_loss for event in events if isinstance(event, Evaluation)}


def weights(training: Training) -> dict[str, NDArray[np.float64]]:
    with training.banks.lease(training.banks.statistics().newest) as lease:
        found = training.optimizer.master or lease.bank.arena
        return {name: tensor.astype(np.float64) for name, tensor in found.items()}


def run_updates(training: Training) -> Iterator[Event]:
    return (event for event in replay(training) if isinstance(event, Update))


@pytest.mark.parametrize("setup", ["delay=0", "delay=2", 'train.freeze=["wpe"]'])
def test_the_average_is_that_of_a_plain_computation(setup: str) -> None:
    training = build(tiny(*COMMON, setup), evaluate=True)
    arena = training.optimizer.average.arena  # type: ignore[union-attr]
    for name, tensor in weights(training).items():
        np.testing.assert_array_equal(arena[name], tensor, err_msg="before the first update")
    seen = [weights(training) for _ in run_updates(training)]
    expected = seen[0]
    for later in seen[1:]:
        expected = {name: DECAY * tensor + (1 - DECAY) * later[name] for name, tensor in expected.items()}
    for name, tensor in expected.items():
        size = max(np.abs(later[name]).max() for later in seen)
        np.testing.assert_allclose(arena[name], tensor, rtol=0, atol=20 * 2.0**-24 * size, err_msg=name)
        assert np.abs(tensor - seen[-1][name]).max() > 1e-4, "the average is not the weights"


@pytest.mark.parametrize("delay", [0, 2])
def test_threads_and_a_resumed_run_have_the_bits_of_the_replay(delay: int, tmp_path: Path) -> None:
    common = (*SEVERAL_CHUNKS, *COMMON, f"delay={delay}", f"checkpoint.copies={'true' if delay else 'false'}")
    training = build(tiny(*common), evaluate=True)
    events = run_sequence(training)
    expected, plain = losses(events), build(tiny(*common, "optimizer.ema=0"))
    assert list(expected) == [2, 4, 5]
    assert result(plain, run_sequence(plain)).updates == result(training, events).updates, "the weights are the same"

    whole = build(tiny(*common, *THREADS), tmp_path, evaluate=True)
    assert losses(run_threads(whole)) == expected
    assert average(whole) == average(training)
    resumed = build(tiny(*common, *THREADS), start=Checkpoint.open(tmp_path / "step-000003"), evaluate=True)
    assert average(resumed) != average(training)
    assert losses(run_threads(resumed)) == {step: loss for step, loss in expected.items() if step > 3}
    assert average(resumed) == average(training)


@pytest.mark.parametrize("delay", [0, 2])
def test_the_loss_of_the_average_is_that_of_a_model_with_it(delay: int) -> None:
    training = build(tiny(*COMMON, f"delay={delay}"), evaluate=True)
    found = losses(run_sequence(training))[5]
    bank, arena = training._copies.average._taken, training.optimizer.average.arena  # type: ignore[union-attr]
    assert bank is None, "the copy was given back"
    with training.banks.lease(5) as lease:
        lease.bank.arena.flat[: arena.flat.size] = arena.flat
        assert training.evaluate is not None
        expected = ValidationLoss(training.compute).mean_loss(lease.bank, training.evaluate._validation.final)
    assert found == expected


def test_the_plan_has_the_average_its_copy_and_its_place_in_a_checkpoint() -> None:
    with_it, without = (planned(tiny(f"optimizer.ema={decay}", "checkpoint.copies=true")) for decay in (DECAY, 0))
    state = without["optimizer state"] // 2
    assert with_it["optimizer state"] == 3 * state
    assert with_it["checkpoint copies"] == without["checkpoint copies"] + state
    assert with_it["evaluation"] == without["evaluation"] + without["weight banks"] // 2
    others = without.keys() - {"optimizer state", "checkpoint copies", "evaluation"}
    assert {name: with_it[name] for name in others} == {name: without[name] for name in others}


def test_the_commands_open_the_average(tmp_path: Path) -> None:
    train(story(tmp_path, f"optimizer.ema={DECAY}", "optimizer.lr=0.05"), tmp_path / "run")
    train(story(tmp_path, "optimizer.lr=0.05"), tmp_path / "plain")
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert record["ema_loss"] != record["val_loss"]
    step = tmp_path / "run" / "checkpoints" / "step-000012"
    _, newest = Checkpoint.open(step).read_model()
    _, found = Checkpoint.open(step, for_training=False, average=True).read_model(average=True)
    assert all((tensor != newest[name]).any() for name, tensor in found.items())
    out = [command("sample", tmp_path / "run", "--tokens", 40, *option).out for option in ((), ("--average",))]
    assert out[0] != out[1]
    assert command("export", tmp_path / "run", tmp_path / "hf", "--average").status == 0
    command("sample", tmp_path / "plain", "--average").refuses("average of the weights", "optimizer.ema")
    command("sample", tmp_path / "hf", "--average").refuses("run with optimizer.ema", "leave --average out")


def test_an_embedding_of_factors_has_no_average() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer\.ema: expected nothing, with embedding\.rank"):
        tiny("optimizer.ema=0.9", "embedding.rank=3")
    assert "optimizer.ema" not in trajectory(tiny())
