"""Trainings of an embedding of residues, whose factors the kernels read: gradients, one trajectory, checkpoints."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import mean_loss, with_bounds
from tests.kernels.comparison import assert_close
from tests.reference import Tensors
from tests.reference.residues import residue_matrix
from tests.rounding_marks import product
from tests.stages.support import assert_same, build, planned, result, run_sequence, run_threads, story, tiny
from tests.stages.training.test_bands import validation_windows
from tests.stages.training.twin import sequences
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.data import prepared_order
from threadloom.stages.inference.model import Model
from threadloom.stages.memory import Evaluation
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode, open_tensors

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

RESIDUES = ("embedding.layout=residues", "embedding.moduli=[3,4]", "embedding.own_rows=2")
MATRIX = residue_matrix(13, (3, 4), 2)


@pytest.mark.parametrize("settings", [("delay=0",), ("delay=1",), ("delay=1", "shared_lanes=true", "lanes=1")], ids=str)
def test_the_gradients_of_the_last_update_equal_the_reference(settings: tuple[str, ...]) -> None:
    """With a delay of 1 the second batch reads version 0, which both ends of the model must use."""
    config = tiny(*RESIDUES, *settings, "steps=2", "threads.backward=2", "optimizer.lr=0.5")
    first, last = build(config), build(config)
    version = 1 - config.delay
    with first.banks.lease(0) as lease:
        bank = lease.bank
    if version:
        one = build(tiny(*RESIDUES, *settings, "steps=1", "optimizer.lr=0.5"))
        run_threads(one)
        with one.banks.lease(1) as lease:
            bank = lease.bank
    assert "wte" not in bank.tensors
    ids, targets = sequences(last, 1)
    weights = {name: tensor.astype(np.float64) for name, tensor in bank.tensors.items()}
    factors = weights.pop("wte_factors")

    def results() -> Tensors:
        whole = {**weights, "wte": product(MATRIX, factors)}
        _, gradients = reference.loss_and_gradients(whole, ids, targets, config.model.heads, 1.0 / ids.size)
        return {**gradients, "wte_factors": product(MATRIX.T, gradients.pop("wte"))}

    expected, bounds = with_bounds(results)
    events = run_threads(last)
    assert last.gradient.arena.keys() == expected.keys() - {"wte"}
    for name in last.gradient.arena:
        assert_close(last.gradient.arena[name], expected[name], bounds[name], name)
    found = result(last, events)
    norm = reference.global_norm({name: expected[name] for name in last.gradient.arena})
    assert abs(found.updates[-1][3] / norm - 1.0) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        ("delay=0", "shared_lanes=true", "lanes=1", "loss.label_smoothing=0.1", "loss.z_loss=1e-3"),
        ("delay=2", "delay_correction=auto"),
        ("delay=1", "precision=bf16"),
    ],
    ids=str,
)
def test_threads_replay_and_resume_have_one_trajectory(settings: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*RESIDUES, *settings, "steps=6", "checkpoint.interval=3", "checkpoint.keep=0", "threads.backward=2")
    training = build(tiny(*settings), tmp_path, evaluate=True)
    whole = result(training, run_threads(training))
    again = build(tiny(*settings, "threads.forward=3", "threads.update=3", "channel_capacity=1"), tmp_path / "replay",
                  evaluate=True)  # fmt: skip
    assert_same(result(again, run_sequence(again)), whole)
    start = Checkpoint.open(tmp_path / "step-000003")
    resumed = build(tiny(*settings), tmp_path / "rest", evaluate=True, start=start)
    rest = result(resumed, run_threads(resumed))
    assert rest.updates == whole.updates[3:]
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(rest.tensors[name], tensor, err_msg=name)


def test_16_bits_follow_float32_and_the_loss_falls() -> None:
    losses = []
    for precision in ("float32", "bf16"):
        training = build(tiny(*RESIDUES, f"precision={precision}", "steps=6"))
        losses.append([update[1] or 0.0 for update in result(training, run_threads(training)).updates])
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("correction", ["none", "auto"])
def test_a_checkpoint_is_a_plain_model_that_computes_the_same(correction: str, tmp_path: Path) -> None:
    settings = ("steps=3", "delay=1", f"delay_correction={correction}", "checkpoint.interval=3")
    config = tiny(*RESIDUES, *settings, "evaluation.interval=3")
    training = build(config, tmp_path, evaluate=True)
    (loss,) = [event.val_loss for event in run_threads(training) if isinstance(event, Evaluation)]
    folder, copy = tmp_path / "step-000003", tmp_path / "model"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, copy)
    geometry, tensors = load_model(copy)
    assert geometry.residues is None
    assert not geometry.factors
    ids, targets = validation_windows(training)
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    expected, bound = mean_loss(weights, ids, targets, config.model.heads)
    assert abs(loss - expected) <= 2 * bound  # of the sums of residues, once as rows and once as logits


def test_a_run_takes_the_memory_of_the_plan_and_less_than_a_plain_one() -> None:
    sizes = ("precision=bf16", "model.vocab_size=900")
    residues = (*sizes, "embedding.layout=residues", "embedding.moduli=[30,31]")
    plain, found = planned(tiny(*sizes)), planned(tiny(*residues))
    for part in ("optimizer state", "weight banks", "gradient lanes", "backward scratch"):
        assert found[part] < plain[part], part
    build(tiny(*residues), evaluate=True)  # checks its allocations


def test_a_lattice_rounds_the_sums_so_that_kernels_read_the_embedding() -> None:
    with build(tiny(*RESIDUES, "embedding.lattice=d4")).banks.lease(0) as lease:
        assert lease.bank.tensors["wte"].shape == (13, 15)


def test_values_of_the_gradient_are_clipped() -> None:
    """Kernels write the gradients of the factors themselves, so that they are clipped as those of any tensor."""
    training = build(tiny(*RESIDUES, "steps=2", "optimizer.clip_value=1e-3"))
    run_threads(training)
    values = training.gradient.arena["wte_factors"]
    assert np.abs(values).max() == np.float32(1e-3)


def test_own_rows_are_those_of_the_most_frequent_tokens(tmp_path: Path) -> None:
    """The rows of the run are in another order than those of its checkpoints, also in a resumed run."""
    settings = ("data.token_order=frequency", "delay=1", "checkpoint.interval=3", "checkpoint.keep=0", "pictures=false")
    sizes = (
        "embedding.layout=residues",
        "embedding.moduli=[3,5]",
        "embedding.own_rows=4",
        "evaluation.final_batches=99",
    )
    outcome = train(story(tmp_path, *settings, *sizes, "steps=6"), tmp_path / "run")
    folder, data = outcome.run.checkpoint(6), tmp_path / "run" / "data"
    order = prepared_order(data)
    assert order is not None
    rows = np.load(data / "validation.npy")
    tokens = order.ids[rows[: (len(rows) - 1) // 8 * 8 + 1]]
    model = Model.open(folder)
    weights = {name: tensor.astype(np.float64) for name, tensor in model.weights._asdict().items()}
    ids, targets = tokens[:-1].reshape(-1, 8), tokens[1:].reshape(-1, 8)
    expected, bound = mean_loss(weights, ids, targets, model.geometry.heads)
    assert outcome.val_loss is not None
    assert abs(outcome.val_loss - expected) <= 2 * bound
    used = np.bincount(np.load(data / "train.npy"), minlength=len(order.ids))
    assert (used[:-1] >= used[1:]).all()
    with open_tensors(folder / "factors.safetensors") as file:
        factors = np.empty((4 + 3 + 5, 16), np.float32)
        file.read("wte_factors", factors)
    np.testing.assert_array_equal(weights["wte"][order.ids[:4]], factors[:4])
    (tmp_path / "short").mkdir()
    first = train(story(tmp_path, *settings, *sizes, "steps=3", "schedule.decay_steps=6"), tmp_path / "short" / "run")
    train(story(tmp_path, *settings, *sizes, "steps=6"), first.run.path, RunMode.RESUME)
    resumed = Model.open(first.run.checkpoint(6)).weights
    np.testing.assert_array_equal(resumed.wte, weights["wte"].astype(np.float32))
