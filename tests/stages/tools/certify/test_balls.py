"""Balls against independent arithmetic: decimal numbers of 60 digits, and the float64 model of the tests."""

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.stages.checkpoint.test_huggingface import random_weights
from tests.stages.models.test_huggingface import GEOMETRY
from threadloom.kernels.common import AttentionActivations, HeadCounts
from threadloom.kernels.common.tensors import ATTENTION_TILE
from threadloom.kernels.float32.attention import attention_forward
from threadloom.stages.config import Precision
from threadloom.stages.layouts import as_weights
from threadloom.stages.tools.certify.balls import Enclosure, distance, magnitude, matrix, radius, working_precision
from threadloom.stages.tools.certify.bounds import FORMATS, output_bound, score_bounds
from threadloom.stages.tools.certify.certifying import certify_ids
from threadloom.stages.tools.certify.exact_model import ExactGpt2, attention
from threadloom.stages.tools.certify.kernel_run import head_scores

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

flint = pytest.importorskip("flint")

IDS = np.array([3, 36, 0, 3, 17, 5, 5, 21, 30, 1, 2, 8], np.int32)


def random_head(seed: int, tokens: int = 5, size: int = 3, norm: float = 1.0) -> tuple[Any, Any, Any]:
    q, k, v = (norm * np.random.default_rng(seed).normal(size=(3, tokens, size))).astype(np.float32)
    return q, k, v


def in_decimals(q: Any, k: Any, v: Any) -> list[list[Decimal]]:
    """Return the output of causal attention in the decimal arithmetic of the current context."""
    rows, root = [], Decimal(q.shape[1]).sqrt()
    for i in range(len(q)):
        scores = [sum((Decimal(float(a)) * Decimal(float(b)) for a, b in zip(q[i], k[j], strict=True)), Decimal(0))
                  / root for j in range(i + 1)]  # fmt: skip
        exponentials = [score.exp() for score in scores]
        total = sum(exponentials, Decimal(0))
        rows.append([sum((e * Decimal(float(v[j, c])) for j, e in enumerate(exponentials)), Decimal(0)) / total
                     for c in range(v.shape[1])])  # fmt: skip
    return rows


@pytest.mark.parametrize("bits", [53, 128])
def test_the_balls_of_attention_contain_the_decimal_result(bits: int) -> None:
    head = random_head(0)
    with localcontext() as context:
        context.prec = 60
        expected = in_decimals(*head)
    with working_precision(bits):
        out = attention(*map(matrix, head)).out.entries()
    with working_precision(256):
        for found, number in zip(out, (x for row in expected for x in row), strict=True):
            assert found.contains(flint.arb(f"{number}"))
            assert 0 < float(found.rad()) < 2.0 ** (8 - bits)


def test_the_exact_model_is_that_of_the_reference_and_the_radius_falls_with_bits() -> None:
    weights = random_weights()
    record = reference.forward(
        {name: weights[name].astype(np.float64) for name in weights}, IDS[None, :-1], GEOMETRY.heads
    )
    radii = []
    for bits in (53, 128, 400):
        with working_precision(bits):
            exact = ExactGpt2(GEOMETRY, as_weights(GEOMETRY, weights), IDS[:-1])
            layers = [exact.layer(n) for n in range(GEOMETRY.layers)]
            ((_, logits),) = exact.logits()
            for layer, x in zip(layers, [*(b.x for b in record.blocks[1:]), record.x_final], strict=True):
                assert distance(x[0], layer.x).lower < 1e-12
            assert distance(record.logits[0], logits).lower < 1e-12
            assert distance(record.logits[0], logits).upper < max(1e-11, 2 * radius(logits))
            radii.append(radius(logits))
    assert radii[1] < radii[0] * 2.0**-70
    assert radii[2] < radii[1] * 2.0**-250
    assert radii[1] < 1e-20


def test_enclosures_are_rounded_outwards() -> None:
    with working_precision(128):
        third = flint.arb(1) / 3
        found = magnitude(-third)
        assert found.lower < 1 / 3 + 1e-16 and flint.arb(found.lower) < third < flint.arb(found.upper)
        assert distance(np.array([[0.25]]), matrix(np.array([[0.5]]))) == Enclosure(
            np.nextafter(0.25, 0), np.nextafter(0.25, 1)
        )
        assert distance(np.array([[np.nan]]), matrix(np.array([[0.5]]))).lower == np.inf


def kernel_attention(q: Any, k: Any, v: Any) -> Any:
    """Return the output of the product's kernel for one head."""
    qkv = np.concatenate([q, k, v], axis=1)
    out, lse = np.zeros(q.shape, np.float32), np.zeros((1, 1, len(q)), np.float32)
    acts = AttentionActivations(qkv, out, lse)
    attention_forward(acts, 1, HeadCounts(1, 1), np.zeros((ATTENTION_TILE, len(q)), np.float32))
    return out


@pytest.mark.parametrize("tokens", [3, ATTENTION_TILE + 7])
@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0, 1e3])
def test_the_kernels_error_is_below_its_bound_and_a_wrong_one_above(norm: float, tokens: int) -> None:
    q, k, v = random_head(7, tokens, 32, norm)
    v = (v / np.float32(norm)).astype(np.float32)
    k[1:] = np.where(np.arange(1, tokens)[:, None] % 3 == 0, k[0] * np.float32(1 + 2.0**-20), k[1:])  # near ties
    out = kernel_attention(q, k, v)
    with working_precision(128):
        exact = attention(matrix(q), matrix(k), matrix(v))
        bound = output_bound(score_bounds(q, k, FORMATS[Precision.FLOAT32]), v, FORMATS[Precision.FLOAT32])
        assert distance(out, exact.out).upper <= bound
        out[-1, 0] += np.float32(4 * bound)
        assert distance(out, exact.out).lower > bound
    if norm <= 1.0:
        assert bound < 1e-3 * np.abs(v).max()


def test_scores_are_observed_by_the_calls_of_the_kernel() -> None:
    q, k, v = random_head(3, ATTENTION_TILE + 7, 8)
    found = head_scores(q, k)
    assert np.array_equal(found.probabilities, np.tril(found.probabilities))
    np.testing.assert_allclose(found.probabilities @ v, kernel_attention(q, k, v), rtol=0, atol=1e-6)
    expected = np.tril(q.astype(np.float64) @ k.T.astype(np.float64) / np.sqrt(8))
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def certified() -> Any:
    """Return the distances of a random model in float32, bf16 and fp16."""
    precisions = [Precision.FLOAT32, Precision.BF16, Precision.FP16]
    with working_precision(128):
        return certify_ids(GEOMETRY, as_weights(GEOMETRY, random_weights()), IDS, precisions, lambda line: None)


def test_errors_are_those_of_the_format(certified: Any) -> None:
    loss, errors, _ = certified
    weights = {name: tensor.astype(np.float64) for name, tensor in random_weights().items()}
    expected = reference.loss_mean(weights, IDS[None, :-1], IDS[None, 1:], GEOMETRY.heads)
    assert loss == pytest.approx(expected, rel=1e-13)
    for found, most in zip(errors, (1e-5, 0.2, 0.02), strict=True):
        distances = [value for layer in found.layers for value in vars(layer).values() if isinstance(value, Enclosure)]
        for value in (*distances, found.head.logits, found.head.loss):
            assert value.lower <= value.upper < most * 10
        assert abs(found.kernel_loss - expected) == pytest.approx(found.head.loss.upper, abs=1e-13)
        assert all(layer.own.upper <= layer.own_bound for layer in found.layers)
        assert found.head.undecided == 0
    float32, bf16, fp16 = (found.head.logits.upper for found in errors)
    assert float32 < fp16 / 100 < bf16 / 100
