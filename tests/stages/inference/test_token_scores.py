"""Log-probabilities of tokens in micro-batches of sequences of several lengths, compared with the float64 reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.reference import Array, Tensors
from tests.stages.support import LLAMA, TINY, tiny
from tests.stages.training.oracle import oracle_of
from threadloom.pipeline import Arena
from threadloom.stages.config import Config
from threadloom.stages.data import IGNORED_TARGET
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.inference import Model, ScoredTokens, score_tokens
from threadloom.stages.inference.decoder import GenerationError
from threadloom.stages.layouts import as_weights
from threadloom.stages.machine import ThreadLimit
from threadloom.stages.models import parameter_shapes
from threadloom.stages.step.float32 import Float32Compute

pytestmark = pytest.mark.timeout(600)  # includes compiling with an empty cache

SIZES = [(1, 1), (7, 7), (7, 1), (3, 2), (5, 5), (2, 1), (6, 3), (4, 1)]
"""Inputs and targets of the requests: all lengths of the context of 7."""


def model_of(base: Config) -> tuple[Model, Tensors, Any]:
    """Return a random model for the kernels, its tensors for the reference, and the reference."""
    config = tiny("model.context=7", base=base)
    geometry, oracle = config.model.geometry(), oracle_of(config)
    tensors = oracle.random_tensors(np.random.default_rng(3), 0.3)
    arena = Arena(parameter_shapes(geometry))
    for name, tensor in tensors.items():
        arena[name][...] = tensor
    return Model(Path("m"), geometry, as_weights(geometry, arena), BytesTokenizer(), None), tensors, oracle


def requests_of(seed: int = 1) -> list[ScoredTokens]:
    """Return requests with random tokens; the last two have the inputs of others."""
    rng = np.random.default_rng(seed)
    found = [
        ScoredTokens(rng.integers(0, 13, inputs, np.int32), rng.integers(0, 13, targets, np.int32))
        for inputs, targets in SIZES
    ]
    return [*found, ScoredTokens(found[1].inputs, found[2].targets), ScoredTokens(found[3].inputs, found[3].targets)]


def log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    sums: Array = np.exp(shifted).sum(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(sums))


@pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("threads", [1, 3])
def test_scores_are_those_of_each_request_by_itself(
    base: Config, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of two or three sequences, and chunks of two rows, in one thread and in three."""
    model, tensors, oracle = model_of(base)
    requests = requests_of()
    chunks = list[int]()
    compute = Float32Compute.logits_of_rows

    def of_rows(self: Any, version: Any, slot: Any, rows: Any, logits: Any) -> None:
        chunks.append(len(rows))
        compute(self, version, slot, rows, logits)

    monkeypatch.setattr(Float32Compute, "logits_of_rows", of_rows)
    monkeypatch.setattr("threadloom.stages.inference.token_scores._ROWS", 15)
    monkeypatch.setattr("threadloom.stages.memory.float32.LOGITS_BYTES", 2 * 13 * 4)
    monkeypatch.setattr("threadloom.stages.inference.token_scores.thread_limit", lambda: ThreadLimit(threads, ""))
    done = list[int]()
    found = score_tokens(model, requests, done.append)
    assert sum(done) == len(requests)
    assert set(chunks) == {1, 2}

    def logits() -> Tensors:
        return {str(n): oracle.forward(tensors, request.inputs[None]).logits[0] for n, request in enumerate(requests)}

    def log_probabilities() -> Tensors:
        rows = {key: log_softmax(value)[-len(requests[int(key)].targets) :] for key, value in logits().items()}
        return {key: row[np.arange(len(row)), requests[int(key)].targets] for key, row in rows.items()}

    expected, bounds = with_bounds(log_probabilities)
    best = {key: value.argmax(axis=1) for key, value in logits().items()}
    for number, (request, scores) in enumerate(zip(requests, found, strict=True)):
        key = str(number)
        assert_close(scores.log_probabilities, expected[key], bounds[key], f"request {number}")
        np.testing.assert_array_equal(scores.greedy, best[key][-len(request.targets) :] == request.targets)
    monkeypatch.undo()
    for alone, scores in zip((score_tokens(model, [request])[0] for request in requests), found, strict=True):
        np.testing.assert_allclose(scores.log_probabilities, alone.log_probabilities, rtol=1e-4)


def test_ignored_targets_have_no_scores() -> None:
    model, _, _ = model_of(TINY)
    [request] = requests_of()[1:2]
    targets = request.targets.copy()
    targets[[0, 3, 4]] = IGNORED_TARGET
    for chosen in (targets, np.full(7, IGNORED_TARGET, np.int32)):
        found, whole = score_tokens(model, [ScoredTokens(request.inputs, chosen), request])
        ignored = chosen == IGNORED_TARGET
        assert not found.log_probabilities[ignored].any()
        assert not found.greedy[ignored].any()
        np.testing.assert_array_equal(found.log_probabilities[~ignored], whole.log_probabilities[~ignored])


def test_no_request_has_no_scores_and_ids_outside_the_vocabulary_are_refused() -> None:
    model, _, _ = model_of(TINY)
    assert score_tokens(model, []) == []
    good, bad = np.array([1, 2], np.int32), np.array([1, 13], np.int32)
    for request in (ScoredTokens(good, bad), ScoredTokens(bad, good)):
        with pytest.raises(GenerationError, match="token ids from 0 to 12, got 13"):
            score_tokens(model, [request])
