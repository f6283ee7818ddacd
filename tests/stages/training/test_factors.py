"""Trainings of factors of the token embedding: the bits of a plain one where M = I, one trajectory, checkpoints."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.central_differences import slope
from tests.stages.embedding.test_layouts import UNIT, dense
from tests.stages.support import LLAMA, TINY, build, result, run_sequence, run_threads, story, tiny
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.config import ConfigError, EmbeddingConfig, EmbeddingLayout, InputError
from threadloom.stages.embedding import DerivedEmbedding, VocabularyFacts, derived_embedding
from threadloom.stages.embedding.sparse import SparseEmbedding
from threadloom.stages.inference.model import Model
from threadloom.stages.resolve import apply_overrides, validate
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

PRIMES = "embedding.layout=primes"
RESIDUES = ("embedding.layout=residues", "embedding.moduli=[3,4]", "embedding.own_rows=2")
TEXTS = (*"abcd", "ab", "ba", "1", "12", "", "cab", "d1", "aaaa", "b")


def primes() -> DerivedEmbedding:
    found = derived_embedding(EmbeddingConfig(layout=EmbeddingLayout.PRIMES), VocabularyFacts(13, TEXTS))
    assert found is not None
    return found


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        ("delay=0",),
        ("delay=2", "delay_correction=auto"),
        ("model.channels=42",),
        ("model.channels=96", "model.heads=4"),
    ],
    ids=str,
)
def test_the_identity_has_the_bits_of_a_plain_training(
    settings: tuple[str, ...], precision: str, tmp_path: Path
) -> None:
    settings = (*settings, f"precision={precision}", "steps=5")
    plain = build(tiny(*settings), evaluate=True)
    factors = build(tiny(*settings, "embedding.layout=identity"), tmp_path, evaluate=True)
    expected, found = result(plain, run_threads(plain)), result(factors, run_threads(factors))
    assert found.updates == expected.updates
    assert found.evaluations == expected.evaluations
    for name, tensor in expected.tensors.items():
        trained = name.replace(" wte", " wte_factors") if not name.startswith("version") else name
        np.testing.assert_array_equal(found.tensors[trained], tensor, err_msg=name)


def test_several_chunks_have_the_bits_of_a_plain_training() -> None:
    settings = (
        "model.vocab_size=4099",
        "model.channels=40",
        "model.heads=4",
        "model.context=3",
        "model.layers=1",
        "steps=3",
    )
    plain, factors = build(tiny(*settings)), build(tiny(*settings, "embedding.layout=identity"))
    expected, found = result(plain, run_threads(plain)), result(factors, run_threads(factors))
    assert found.updates == expected.updates
    np.testing.assert_array_equal(found.tensors["version 3 wte"], expected.tensors["version 3 wte"])


@pytest.mark.parametrize("layout", [(PRIMES,), RESIDUES], ids=["primes", "residues"])
@pytest.mark.parametrize("settings", [("delay=0",), ("delay=2",), ("delay=1", "precision=bf16")], ids=str)
def test_threads_replay_and_resume_have_one_trajectory(
    layout: tuple[str, ...], settings: tuple[str, ...], tmp_path: Path
) -> None:
    derived = primes() if layout == (PRIMES,) else None
    settings = (*layout, *settings, "steps=6", "checkpoint.interval=3", "checkpoint.keep=0")
    training = build(tiny(*settings), tmp_path, evaluate=True, derived=derived)
    whole = result(training, run_threads(training))
    again = build(tiny(*settings, "threads.forward=3", "threads.update=3", "channel_capacity=1"), derived=derived)
    assert result(again, run_sequence(again)).tensors.keys() == whole.tensors.keys()
    for name, tensor in result(again, ()).tensors.items():
        np.testing.assert_array_equal(tensor, whole.tensors[name], err_msg=name)
    start = Checkpoint.open(tmp_path / "step-000003")
    resumed = build(tiny(*settings), tmp_path / "rest", evaluate=True, start=start, derived=derived)
    rest = result(resumed, run_threads(resumed))
    assert rest.updates == whole.updates[3:]
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(rest.tensors[name], tensor, err_msg=name)


def test_the_embedding_is_the_product_and_the_rest_of_the_start_is_that_of_a_plain_training() -> None:
    derived = primes()
    assert isinstance(derived, SparseEmbedding)
    with build(tiny()).banks.lease(0) as plain, build(tiny(PRIMES), derived=derived).banks.lease(0) as found:
        for name, tensor in plain.bank.tensors.items():
            np.testing.assert_array_equal(found.bank.tensors[name], tensor, err_msg=name)
        assert not found.bank.tensors["wte_factors"][13:].any()
    training = build(tiny(PRIMES, "steps=4"), derived=derived)
    run_threads(training)
    with training.banks.lease(4) as lease:
        factors, embedding = lease.bank.tensors["wte_factors"], lease.bank.tensors["wte"]
        assert factors[13:].any()
        matrix = dense(derived.matrix)
        size = np.abs(matrix) @ np.abs(factors)
        assert (np.abs(embedding - matrix @ factors) <= 8 * UNIT * size).all()  # at most 5 entries in a row


def test_the_gradient_of_the_factors_is_the_slope_of_the_loss() -> None:
    """Central differences of the float64 reference in the factors, against fold on its gradient of the embedding."""
    derived, random = primes(), np.random.default_rng(3)
    assert isinstance(derived, SparseEmbedding)
    config = tiny(PRIMES)
    training = build(config, derived=derived)
    with training.banks.lease(0) as lease:
        weights = {name: tensor.astype(np.float64) for name, tensor in lease.bank.tensors.items()}
    matrix = dense(derived.matrix)
    factors = random.standard_normal((matrix.shape[1], config.model.channels)) * 0.1
    weights.pop("wte_factors")
    ids, targets = random.integers(0, 13, (2, 2, config.model.context))

    def loss(value: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> float:
        return reference.loss_sum({**weights, "wte": matrix @ value}, ids, targets, config.model.heads)

    _, gradients = reference.loss_and_gradients({**weights, "wte": matrix @ factors}, ids, targets, config.model.heads)
    d_embedding = gradients["wte"].astype(np.float32)
    found = np.empty(factors.shape, np.float32)
    derived.fold(d_embedding, {}, {"wte_factors": found})
    for _ in range(4):
        direction = random.standard_normal(factors.shape)
        direction /= np.linalg.norm(direction)
        expected, truncation = slope(loss, factors, direction)
        rounding = 20 * UNIT * float((np.abs(matrix.T) @ np.abs(gradients["wte"]) * np.abs(direction)).sum())
        assert abs(float((found * direction).sum()) - expected) <= truncation + rounding + 1e-10  # of 12 float64 losses


def test_a_checkpoint_is_a_plain_model_with_the_factors_beside_it(tmp_path: Path) -> None:
    settings = ("steps=3", "pictures=false", "delay=2", PRIMES)
    outcome = train(story(tmp_path, *settings), tmp_path / "run")
    folder = outcome.run.checkpoint(3)
    assert (folder / "factors.safetensors").exists()
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, copy)
    geometry, tensors = load_model(copy)
    assert not geometry.factors
    opened = Model.open(outcome.run.path).weights._asdict()
    np.testing.assert_array_equal(opened["wte"], tensors["wte"])
    train(story(tmp_path, *settings, "steps=5", "schedule.decay_steps=3"), tmp_path / "run", RunMode.RESUME)


def test_a_damaged_or_other_layout_is_refused(tmp_path: Path) -> None:
    training = build(tiny(PRIMES, "steps=2"), tmp_path, derived=primes())
    run_threads(training)
    start = Checkpoint.open(tmp_path / "step-000002")
    for derived, settings in ((None, (PRIMES,)), (None, ()), (None, ("embedding.layout=identity",))):
        with pytest.raises(InputError, match="layout of the embedding"):
            build(tiny(*settings, "steps=4"), start=start, derived=derived)
    path = tmp_path / "step-000002" / "factors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"factors\.safetensors"):
        Checkpoint.open(tmp_path / "step-000002")
    Checkpoint.open(tmp_path / "step-000002", for_training=False)


@pytest.mark.parametrize("settings", [("lora.rank=2",), ('train.freeze=["wpe"]',), ('train.only=["wte"]',)], ids=str)
def test_what_does_not_go_together_is_refused(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.layout=primes"):
        validate(apply_overrides(TINY, (PRIMES, *settings)))


def test_a_llama_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpt2"):
        validate(apply_overrides(LLAMA, (PRIMES,)))
