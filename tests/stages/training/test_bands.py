"""Trainings of an embedding of low rank by bands: gradients, one trajectory, checkpoints, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import mean_loss, with_bounds
from tests.kernels.comparison import assert_close
from tests.reference import Ids, Tensors
from tests.reference.bands import Band, factor_gradients
from tests.rounding_marks import product
from tests.stages.support import (
    LLAMA,
    TINY,
    assert_same,
    build,
    planned,
    result,
    run_sequence,
    run_threads,
    story,
    tiny,
)
from tests.stages.training.twin import sequences
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.config import ConfigError
from threadloom.stages.inference.model import Model
from threadloom.stages.memory import Bank, Evaluation
from threadloom.stages.resolve import apply_overrides, validate
from threadloom.stages.run import train
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

RANK = ("embedding.rank=6",)
BANDS = ("embedding.bands=[[4,15],[3,6],[0,2]]", "data.token_order=frequency")
SIZES = [(4, 15), (3, 6), (6, 2)]


def bands_of_bank(bank: Bank) -> list[Band]:
    """Return the factors of a bank of `BANDS` in float64."""
    rows, bases = (bank.arena[name].astype(np.float64) for name in ("wte_rows", "wte_bases"))
    found: list[Band] = []
    for tokens, rank in SIZES:
        own, rows = rows[: tokens * rank].reshape(tokens, rank), rows[tokens * rank :]
        basis = None
        if rank < 15:
            basis, bases = bases[: rank * 15].reshape(rank, 15), bases[rank * 15 :]
        found.append((own, basis))
    assert not rows.size
    assert not bases.size
    return found


@pytest.mark.parametrize("settings", [("delay=0",), ("delay=1",), ("delay=1", "shared_lanes=true", "lanes=1")], ids=str)
def test_the_gradients_of_the_last_update_equal_the_reference(settings: tuple[str, ...]) -> None:
    """With a delay of 1 the second batch reads version 0, which both sides of the gradient must use."""
    config = tiny(*BANDS, *settings, "steps=2", "threads.backward=2", "optimizer.lr=0.5")
    first, last = build(config), build(config)
    version = 1 - config.delay
    with first.banks.lease(0) as lease:
        bank = lease.bank
    if version:
        one = build(tiny(*BANDS, *settings, "steps=1", "optimizer.lr=0.5"))
        run_threads(one)
        with one.banks.lease(1) as lease:
            bank = lease.bank
    ids, targets = sequences(last, 1)
    weights = {name: tensor.astype(np.float64) for name, tensor in bank.tensors.items() if not name.startswith("wte")}
    bands = bands_of_bank(bank)

    def results() -> Tensors:
        rows = [own if basis is None else product(own, basis) for own, basis in bands]
        whole = {**weights, "wte": np.concatenate(rows)}
        _, gradients = reference.loss_and_gradients(whole, ids, targets, config.model.heads, 1.0 / ids.size)
        d_rows, d_bases = factor_gradients(gradients.pop("wte"), bands)
        return {**gradients, "wte_rows": d_rows, "wte_bases": d_bases}

    expected, bounds = with_bounds(results)
    events = run_threads(last)
    for name, tensor in expected.items():
        assert_close(last.gradient.arena[name], tensor, bounds[name], name)
    found = result(last, events)
    norm = reference.global_norm(expected)
    assert abs(found.updates[-1][3] / norm - 1.0) < 1e-5


@pytest.mark.parametrize("layout", [RANK, BANDS], ids=["rank", "bands"])
@pytest.mark.parametrize(
    "settings",
    [("delay=0", "shared_lanes=true", "lanes=1"), ("delay=2", "delay_correction=auto"), ("delay=1", "precision=bf16")],
    ids=str,
)
def test_threads_replay_and_resume_have_one_trajectory(
    layout: tuple[str, ...], settings: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*layout, *settings, "steps=6", "checkpoint.interval=3", "checkpoint.keep=0", "threads.backward=2")
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
    check_embedding(training)


def check_embedding(training: Training) -> None:
    """Check that a published version has the product of its factors, and that its packed weights are up to date."""
    with training.banks.lease_newest() as lease:
        bank = lease.bank
        assert training.factors is not None
        found = training.factors.embedding_of(bank.arena)["wte"]
        np.testing.assert_array_equal(found, bank.arena["wte"])
        if bank.packed is not None:
            before = {name: array.copy() for name, array in bank.packed._asdict().items()}
            for array in bank.packed:
                array.fill(0)
            training.compute.pack_from_master(bank)
            for name, array in bank.packed._asdict().items():
                np.testing.assert_array_equal(array, before[name], err_msg=name)
            assert before["wte_rows"].any()
            assert before["wte_bases_t"].any()


def test_bf16_follows_float32_and_both_fall() -> None:
    losses = []
    for precision in ("float32", "bf16"):
        training = build(tiny(*BANDS, f"precision={precision}", "steps=6", "embedding.basis=random"))
        losses.append([update[1] or 0.0 for update in result(training, run_threads(training)).updates])
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)


@pytest.mark.parametrize("layout", [RANK, BANDS], ids=["rank", "bands"])
def test_a_checkpoint_is_a_plain_model_that_computes_the_same(layout: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny(*layout, "steps=3", "delay=1", "checkpoint.interval=3", "evaluation.interval=3")
    training = build(config, tmp_path, evaluate=True)
    events = run_threads(training)
    (loss,) = [event.val_loss for event in events if isinstance(event, Evaluation)]
    folder = tmp_path / "step-000003"
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, copy)
    geometry, tensors = load_model(copy)
    assert not geometry.factors
    assert not geometry.bands
    ids, targets = validation_windows(training)
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    expected, bound = mean_loss(weights, ids, targets, config.model.heads)
    assert abs(loss - expected) <= 2 * bound  # of the products A P, and of a product of two matrices


def validation_windows(training: Training) -> tuple[Ids, Ids]:
    """Return ids and targets of the windows of the final evaluation in `tests.stages.support.validation`."""
    config = training.config
    tokens = np.random.default_rng(9).integers(0, config.model.vocab_size, 40 * config.model.context + 1)
    count, context = 3 * config.batch_size, config.model.context
    rows = (np.arange(count) * 40 // count * context)[:, np.newaxis] + np.arange(context)
    return tokens[rows], tokens[rows + 1]


def test_a_run_takes_the_memory_of_the_plan_and_less_for_the_optimizer() -> None:
    plain, banded = planned(tiny("precision=bf16")), planned(tiny(*RANK, "precision=bf16"))
    assert banded["optimizer state"] < plain["optimizer state"]
    build(tiny(*RANK, "precision=bf16"), evaluate=True)  # checks its allocations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((*RANK, "lora.rank=2"), "embedding.rank=6"),
        ((*RANK, 'train.freeze=["wpe"]'), "embedding.rank=6"),
        ((*RANK, "precision=fp16"), "precision=bf16"),
        ((*RANK, "embedding.layout=primes"), "one of embedding.rank"),
        ((*RANK, *BANDS), "one of embedding.rank"),
        (("embedding.rank=15",), "one of them smaller"),
        (BANDS[:1], "data.token_order=frequency"),
        (("embedding.bands=[[4,15],[0,70]]", BANDS[1]), "15 channels"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(apply_overrides(TINY, settings))
    assert message in str(error.value)


def test_bands_have_the_tokens_of_the_vocabulary(tmp_path: Path) -> None:
    """The size of the vocabulary is known once the text is read."""
    settings = ("data.token_order=frequency", "steps=2", "pictures=false")
    for bands in ("[[6,16],[0,4]]", "[[6,16],[1,4]]"):
        config = story(tmp_path, *settings, f"embedding.bands={bands}")
        if bands.endswith("[0,4]]"):
            assert not Model.open(train(config, tmp_path / "run").run.path).geometry.bands
            continue
        with pytest.raises(ConfigError, match="tokens of the vocabulary"):
            train(config, tmp_path / "other")


def test_a_llama_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpt2"):
        validate(apply_overrides(LLAMA, RANK))
