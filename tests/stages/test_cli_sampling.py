"""Sampling and evaluation on the command line: padded vocabularies, ends of texts, losses and texts at the limits."""

import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from tests import reference
from tests.error_bounds import mean_loss
from tests.stages.support import Outcome, command, story
from threadloom.pipeline import Arena, blas_threads, loaded_blas
from threadloom.stages import inference
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.inference import (
    DecodePrecision,
    Decoder,
    GenerationLimits,
    Model,
    SamplingSettings,
    generate_text,
    generation,
    stored_weights,
)
from threadloom.stages.inference.sampling import sample_token
from threadloom.stages.machine import ThreadLimit
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.resolve import to_json
from threadloom.stages.step.float32 import Float32Compute

pytestmark = pytest.mark.timeout(60)

GEOMETRY = Geometry(vocabulary=300, context=16, layers=1, heads=2, channels=8)
"""With 44 ids that the bytes tokenizer has no text for."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


def train(folder: Path, *settings: str, sample: int = 60) -> Outcome:
    (folder / "config.json").write_text(to_json(story(folder, "steps=2", "pictures=false")))
    changes = [f"--set={setting}" for setting in settings]
    start = ("train", "--config", folder / "config.json", "--out", folder / "run", "--no-tuned", f"--sample={sample}")
    return command(*start, *changes)


def folder_of(tmp_path: Path, scale: float = 1.0) -> Path:
    """Write a model with a bytes tokenizer; `scale` multiplies its embedding, and with it the logits."""
    g = GEOMETRY
    tensors = reference.random_tensors(np.random.default_rng(0), g.vocabulary, g.context, g.layers, g.channels)
    weights = Arena(parameter_shapes(g))
    for name, tensor in tensors.items():
        weights[name][...] = tensor
    weights["wte"][...] *= scale
    weights["wte"][:32] = weights["wte"][127:] = 0.0  # so that a greedy choice is never a control character
    write_model(tmp_path, weights, g)
    BytesTokenizer().save(tmp_path / "tokenizer.json")
    return tmp_path


def expected_loss(folder: Path, ids: np.ndarray, length: int = -1) -> tuple[float, float]:
    """Return the loss of a text of windows of a length, by default one, and how far a printed one may be from it.

    It is printed with four decimals.
    """
    model = Model.open(folder)
    weights = {name: tensor.astype(np.float64) for name, tensor in model.weights._asdict().items()}
    length = len(ids) - 1 if length < 0 else length
    loss, bound = mean_loss(weights, ids[:-1].reshape(-1, length), ids[1:].reshape(-1, length), model.geometry.heads)
    return loss, bound + 0.5e-4


def test_a_vocabulary_larger_than_that_of_the_text(tmp_path: Path) -> None:
    trained = train(tmp_path, "model.vocab_size=128")
    assert trained.status == 0, trained.err
    assert "WARNING" not in trained.err
    assert Model.open(tmp_path / "run").ids_without_text.size > 90
    sampled = command("sample", tmp_path / "run", "--temperature=100", "--tokens=300")
    assert sampled.status == 0, sampled.err
    assert len(sampled.out) >= 300
    assert command("eval", tmp_path / "run").status == 0


def test_the_files_for_transformers_name_the_token_that_ends_a_text(tmp_path: Path) -> None:
    trained = train(tmp_path, "data.tokenizer=bpe", "model.vocab_size=2000", sample=0)
    assert trained.status == 0, trained.err
    model = Model.open(tmp_path / "run")
    assert model.ids_without_text.size > 1000, "the text has fewer pairs"
    limits = GenerationLimits(200, ignore_eos=True)
    assert "".join(generate_text(model, [0], SamplingSettings(temperature=100.0), limits, 1))
    assert len(model.end_ids) == 1
    for name in ("config.json", "generation_config.json"):
        assert json.loads((model.path / name).read_text())["eos_token_id"] in model.end_ids
    (model.path / "training.json").unlink()  # as a folder of Hugging Face
    assert Model.open(model.path).end_ids == model.end_ids


def test_a_sample_that_fails_does_not_fail_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[str]:
        raise MemoryError("no memory left")

    monkeypatch.setattr(inference, "generate_text", broken)
    trained = train(tmp_path)
    assert trained.status == 0
    assert "the run is complete, but its result was not printed: no memory left" in trained.err
    assert "validation loss" in trained.out
    assert "run directory: " in trained.out


def test_a_sample_ends_before_a_stop(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    start = ("sample", folder, "--prompt=a", "--tokens=40", "--temperature=0")
    whole = command(*start).out.removesuffix("\n")
    assert command(*start, f"--stop={whole[5:8]}").out == "a" + whole[1:].partition(whole[5:8])[0] + "\n"
    command(*start, "--stop=").refuses("stop: expected a text of at least one character")


@pytest.mark.parametrize("length", [2, 3, 16, 17])
def test_a_text_shorter_than_the_context_is_evaluated(tmp_path: Path, length: int) -> None:
    folder, text = folder_of(tmp_path), "a text of bytes!!"[:length]
    (tmp_path / "short.txt").write_text(text)
    found = command("eval", folder, "--text", tmp_path / "short.txt")
    assert found.status == 0, found.err
    expected, bound = expected_loss(folder, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    assert abs(float(found.out.split()[1]) - expected) <= bound
    assert f"({length - 1} tokens" in found.out


@pytest.mark.parametrize("threads", [1, 3])
def test_an_evaluation_takes_the_threads_of_the_process_and_one_of_blas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """The loss is that of the whole text by the reference, at any number of threads."""
    folder = folder_of(tmp_path)
    text = bytes(np.random.default_rng(2).integers(97, 123, 160 * GEOMETRY.context + 1).tolist()).decode()
    (tmp_path / "long.txt").write_text(text)
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    computing, blas = set[int](), set[int]()
    compute = Float32Compute.forward

    def forward(self: Float32Compute, version: Any, slot: Any) -> None:
        computing.add(id(self))  # each thread has its own
        blas.update(library.threads for library in loaded_blas())
        compute(self, version, slot)

    monkeypatch.setattr(Float32Compute, "forward", forward)
    monkeypatch.setattr("threadloom.stages.inference.token_scores.thread_limit", lambda: ThreadLimit(threads, ""))
    with blas_threads(2):
        out = command("eval", folder, "--text", tmp_path / "long.txt").out
    assert len(computing) == threads
    assert blas == {1}
    expected, bound = expected_loss(folder, ids, GEOMETRY.context)
    assert abs(float(out.split()[1]) - expected) <= bound


@pytest.mark.timeout(300)  # includes compiling with an empty cache
@pytest.mark.parametrize("precision", [DecodePrecision.BF16, DecodePrecision.INT8])
def test_a_sample_in_another_number_format(tmp_path: Path, precision: DecodePrecision) -> None:
    """A greedy text is that of the decoder with converted weights, and may leave the context."""
    folder = folder_of(tmp_path)
    found = command("sample", folder, "--prompt=a", "--tokens=40", "--temperature=0", f"--precision={precision.value}")
    assert found.status == 0, found.err
    model = Model.open(folder)
    decoder = Decoder(stored_weights(model.weights, model.geometry, precision), model.geometry)
    logits, ids = decoder.prefill([ord("a")]), list[int]()
    while len(ids) < 40:
        ids.append(int(logits[:256].argmax()))
        logits = decoder.append(ids[-1])
    assert found.out == "a" + bytes(ids).decode() + "\n"


def test_the_number_of_threads_does_not_change_a_sample(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    greedy = ("sample", folder, "--prompt=a", "--tokens=40", "--temperature=0")
    texts = {command(*greedy, f"--threads={threads}").out for threads in (1, 3)}
    assert len(texts) == 1 < len(max(texts))
    assert command("sample", folder, "--tokens=1", "--threads=0").status == 2


def test_the_float32_weights_of_a_sample_in_another_format_are_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def models() -> list[Model]:
        return [found for found in gc.get_objects() if isinstance(found, Model)]

    draw, alive, before = sample_token, list[list[str]](), {id(model) for model in models()}

    def drawn(*arguments: Any) -> int:
        alive.append([str(model.weights.wte.dtype) for model in models() if id(model) not in before])
        return draw(*arguments)

    monkeypatch.setattr(generation, "sample_token", drawn)
    assert command("sample", folder_of(tmp_path), "--tokens=2", "--precision=bf16").status == 0
    assert alive == [["uint32"], ["uint32"]]


def test_a_sample_is_computed_with_one_blas_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[int] = set()
    draw = sample_token

    def drawn(*arguments: Any) -> int:
        found.update(library.threads for library in loaded_blas())
        return draw(*arguments)

    monkeypatch.setattr(generation, "sample_token", drawn)
    with blas_threads(2):
        assert command("sample", folder_of(tmp_path), "--tokens=3").status == 0
    assert found == {1}


def test_a_text_of_one_token_has_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a")
    command("eval", folder_of(tmp_path), "--text", tmp_path / "short.txt").refuses("at least two tokens", "got 1")


def test_a_perplexity_beyond_the_largest_number_is_infinite(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, scale=1e5)
    (tmp_path / "text.txt").write_text("some text of more than one window of the model")
    found = command("eval", folder, "--text", tmp_path / "text.txt")
    assert found.status == 0, found.err
    loss = float(found.out.split()[1])
    assert loss > math.log(np.finfo(float).max)
    assert "perplexity inf, " in found.out


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, scale: float) -> None:
    folder = folder_of(tmp_path, scale)
    (tmp_path / "text.txt").write_text("some text of more than one window of the model")
    command("eval", folder, "--text", tmp_path / "text.txt").refuses("a model with a finite loss", "a loss of nan")
    command("sample", folder, "--prompt=a", "--tokens=2").refuses("expected a finite maximum")


def test_ids_without_text_count_in_the_loss_as_in_training(tmp_path: Path) -> None:
    """The softmax is that of the model's whole vocabulary, in `eval` as in the reference."""
    folder, text = folder_of(tmp_path), "sixteen letters, "
    assert Model.open(folder).ids_without_text.size == 44
    (tmp_path / "text.txt").write_text(text)
    found = command("eval", folder, "--text", tmp_path / "text.txt").out
    expected, bound = expected_loss(folder, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    assert abs(float(found.split()[1]) - expected) <= bound
    assert f"{expected / math.log(2):.3f}"[:5] in found, "one byte per character"
