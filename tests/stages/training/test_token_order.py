"""Trainings with the rows of the vocabulary in another order: the same function, and the same files."""

from pathlib import Path

import numpy as np
import pytest

from tests.kernels.comparison import assert_close
from tests.reference import Tensors
from tests.stages.support import LLAMA, TINY, build, command, result, run_sequence, run_threads, story, tiny
from tests.stages.training.twin import SMALL_STEPS, expectation, random_weights, start_from
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import Checkpoint, load_model
from threadloom.stages.config import Config
from threadloom.stages.data import TokenIds
from threadloom.stages.data.batches import BatchSource, RandomTokens
from threadloom.stages.inference.decoder import Decoder
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.text_evaluation import evaluate_text
from threadloom.stages.memory.graph_items import Update
from threadloom.stages.models import (
    OrderedWeights,
    RandomWeights,
    VocabularyOrder,
    parameter_shapes,
    vocabulary_tensors,
)
from threadloom.stages.resolve import apply_overrides, with_initial_model
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

ORDER = VocabularyOrder(np.array([5, 0, 9, 3, 12, 1, 7, 2, 8, 11, 4, 10, 6], np.int32))
needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
MODELS = pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])


class Rows:
    """A source of the rows of an order for the ids of another source."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        self._source.fill(batch, micro, ids, targets)
        ids[:], targets[:] = ORDER.rows[ids], ORDER.rows[targets]

    def counted(self, batch: int) -> int:
        return self._source.counted(batch)


def ordered(base: Config, *overrides: str, **options: object) -> Training:
    """Return a training in the order, on the same tokens as `build`."""
    config = tiny(*overrides, base=base)
    source = Rows(RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    return build(config, data=source, order=ORDER, **options)  # type: ignore[arg-type]


@MODELS
def test_only_the_order_of_sums_changes(base: Config) -> None:
    """Both trainings are as close to the float64 reference as its bounds on rounding errors permit."""
    settings = (*SMALL_STEPS, "steps=2", "delay=1", "delay_correction=none")
    plain, training = build(tiny(*settings, base=base)), ordered(base, *settings)
    geometry, weights = training.config.geometry(), random_weights(training.config)
    start_from(plain, weights)
    start_from(training, {n: t[ORDER.ids] if n in vocabulary_tensors(geometry) else t for n, t in weights.items()})
    expected = expectation(plain)
    losses = [event.loss for event in run_threads(training) if isinstance(event, Update)]
    assert_close(np.array(losses), expected.tensors["losses"], expected.bounds["losses"], "losses")
    tensors: Tensors = {}
    with training.banks.lease(2) as lease:
        for name, tensor in lease.bank.arena.items():
            rows = tensor[ORDER.rows] if name in vocabulary_tensors(geometry) else tensor
            tensors[f"change to version 2 of {name}"] = rows.astype(np.float64) - expected.start[name]
    for name, tensor in tensors.items():
        assert_close(tensor, expected.tensors[name], expected.bounds[name], name)


@MODELS
def test_the_first_weights_are_those_of_the_same_seed(base: Config) -> None:
    plain, training = build(tiny(base=base)), ordered(base)
    with plain.banks.lease(0) as theirs, training.banks.lease(0) as ours:
        for name, tensor in theirs.bank.tensors.items():
            rows = ORDER.ids if name in vocabulary_tensors(training.config.geometry()) else np.arange(len(tensor))
            np.testing.assert_array_equal(ours.bank.tensors[name], tensor[rows], err_msg=name)


def test_the_tensors_of_the_vocabulary() -> None:
    assert vocabulary_tensors(tiny().geometry()) == {"wte"}
    assert vocabulary_tensors(tiny(base=LLAMA).geometry()) == {"wte", "head"}
    assert vocabulary_tensors(tiny("model.tied=true", base=LLAMA).geometry()) == {"wte"}


@MODELS
def test_matrices_that_are_packed_one_by_one_are_ordered(base: Config) -> None:
    geometry = tiny(base=base).geometry()
    source = RandomWeights(geometry, 5)
    whole = Arena(parameter_shapes(geometry))
    OrderedWeights(source, ORDER, geometry).write(whole)
    for name in ("wte", "qkv_weight"):
        found = list(OrderedWeights(RandomWeights(geometry, 5), ORDER, geometry).matrices(name))
        np.testing.assert_array_equal(np.reshape(found, whole[name].shape), whole[name])


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=needs_compiler)])
@pytest.mark.parametrize("correction", ["none", "auto"])
@MODELS
def test_checkpoints_are_in_the_order_of_the_tokenizer_and_resume(
    base: Config, correction: str, precision: str, tmp_path: Path
) -> None:
    settings = (
        f"precision={precision}",
        "delay=2",
        f"delay_correction={correction}",
        "steps=5",
        "checkpoint.interval=1",
        "checkpoint.keep=0",
    )
    training = ordered(base, *settings, folder=tmp_path)
    whole = result(training, run_threads(training))
    saved = Checkpoint.open(tmp_path / "step-000005")
    shapes = parameter_shapes(training.config.geometry())
    found = {name: Arena(shapes) for name in training.optimizer.state}
    newest, older = Arena(shapes), Arena(shapes)
    saved.read_weights(5, newest)
    saved.read_weights(4, older)
    with training.banks.lease(5) as last, training.banks.lease(4) as before:
        live = {"newest": training.optimizer.master or last.bank.arena, "older": before.bank.arena}
        for label, arena in (("newest", newest), ("older", older)):
            for name, tensor in arena.items():
                rows = ORDER.rows if name in ("wte", "head") else np.arange(len(tensor))
                np.testing.assert_array_equal(tensor, live[label][name][rows], err_msg=f"{label} {name}")
    if correction == "none":
        saved.read_optimizer(found)
        for state, arena in training.optimizer.state.items():
            np.testing.assert_array_equal(found[state]["wte"], arena["wte"][ORDER.rows], err_msg=state)
    resumed = ordered(base, *settings, "threads.forward=3", start=Checkpoint.open(tmp_path / "step-000003"))
    replayed = ordered(base, *settings)
    rest, again = result(resumed, run_threads(resumed)), result(replayed, run_sequence(replayed))
    assert (rest.updates, again.updates) == (whole.updates[3:], whole.updates)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(rest.tensors[name], tensor, err_msg=name)
        np.testing.assert_array_equal(again.tensors[name], tensor, err_msg=name)


class TestRun:
    """Whole runs with `data.token_order`."""

    def test_files_and_texts_are_those_of_the_tokenizer(self, tmp_path: Path) -> None:
        settings = (
            "data.token_order=ulam_manhattan",
            "steps=6",
            "schedule.decay_steps=6",
            "model.vocab_size=31",
            "pictures=false",
        )
        outcome = train(story(tmp_path, *settings), tmp_path / "run")
        for steps, mode in ((2, RunMode.NEW), (6, RunMode.RESUME)):
            train(story(tmp_path, *settings, f"steps={steps}"), tmp_path / "parts", mode)
        checkpoint = outcome.run.checkpoint(6)
        names = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json")
        for name in names:
            other = tmp_path / "parts" / "checkpoints" / "step-000006" / name
            assert (checkpoint / name).read_bytes() == other.read_bytes(), name
        text = (tmp_path / "text.txt").read_text()
        (tmp_path / "validation.txt").write_text(text[int(len(text) * 0.9) :])
        by_file, by_text = (
            evaluate_text(outcome.run.path, ()),
            evaluate_text(outcome.run.path, (str(tmp_path / "validation.txt"),)),
        )
        assert (by_file.loss, by_file.tokens) == (by_text.loss, by_text.tokens)
        assert by_file.characters_per_token == by_text.characters_per_token == 1.0
        assert outcome.val_loss == pytest.approx(by_file.loss, rel=0.2), "the same windows but for the last ones"
        model = Model.open(outcome.run.path)
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text

    @pytest.mark.parametrize("lora", [(), ("lora.rank=2", 'lora.save=["wte"]')], ids=["whole", "adapters"])
    def test_a_run_starts_from_the_weights_of_a_model(self, lora: tuple[str, ...], tmp_path: Path) -> None:
        first = train(story(tmp_path, "steps=2", "pictures=false"), tmp_path / "first").run.checkpoint(2)
        config = with_initial_model(story(tmp_path), first)
        still = (
            "optimizer.lr=0",
            "steps=2",
            "checkpoint.interval=1",
            "schedule.decay_steps=3",
            "data.token_order=frequency",
            "pictures=false",
            *lora,
        )
        train(apply_overrides(config, still), tmp_path / "run")
        train(apply_overrides(config, (*still, "steps=3")), tmp_path / "run", RunMode.RESUME)
        expected = load_model(first)[1]
        found = Model.open(tmp_path / "run").weights._asdict()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)

    @pytest.mark.torch
    @pytest.mark.filterwarnings("default")  # warnings of the libraries
    @pytest.mark.parametrize("architecture", ["gpt2", "llama"])
    def test_transformers_computes_the_same_logits_for_the_ids_of_the_tokenizer(
        self, architecture: str, tmp_path: Path
    ) -> None:
        transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
        settings = ["data.token_order=frequency", "steps=200", "optimizer.lr=1e-2", "pictures=false"]
        if architecture == "llama":
            settings += ["model.architecture=llama", "model.tied=false", "model.kv_heads=2"]
        run = train(story(tmp_path, *settings), tmp_path / "run").run
        assert command("export", run.path, tmp_path / "export").status == 0
        model = Model.open(tmp_path / "export")
        ids = model.tokenizer.encode((tmp_path / "text.txt").read_text())[:800].astype(np.int64).reshape(-1, 8)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
        with torch.no_grad():
            logits = theirs(torch.from_numpy(ids)).logits
        decoder = Decoder(model.weights, model.geometry)
        found = np.array([decoder.prefill(row).copy() for row in ids[:20]])
        np.testing.assert_allclose(found, logits[:20, -1].numpy(), rtol=0, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten())
        assert float(loss) < 2.0, "it has learned the text, so the rows are in their places"
