"""Distances between the numbers of the kernels and the exact ones of the real-valued model, as enclosures."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.tools.certify.balls import (
    NOTHING,
    UNBOUNDED,
    Ball,
    BallMatrix,
    Enclosure,
    Floats64,
    ball,
    distance,
    largest,
    magnitude,
    matrix,
    rows_of,
)
from threadloom.stages.tools.certify.bounds import FORMATS, Format, output_bound, probability_bounds, score_bounds
from threadloom.stages.tools.certify.exact_model import ExactAttention, ExactLayer, attention, split_heads
from threadloom.stages.tools.certify.kernel_run import HeadScores, KernelLayer, KernelRun


@dataclass(frozen=True)
class LayerErrors:
    """Largest distances of one block's numbers, in one precision, to the exact ones."""

    scores: Enclosure
    probabilities: Enclosure
    attention: Enclosure
    """Of the heads' outputs."""
    residual: Enclosure
    """Of the residual stream after the block."""
    own: Enclosure
    """Of the heads' outputs to those that exact arithmetic computes from the q, k and v of the kernel."""
    own_bound: float
    """A-priori bound of `own`."""


@dataclass(frozen=True)
class HeadErrors:
    """Distances of the attention of one head; the fields are those of `LayerErrors`."""

    scores: Enclosure
    probabilities: Enclosure
    own: Enclosure
    own_bound: float


def head_errors(
    parts: tuple[Any, Any, Any], out: Floats64, kept: HeadScores | None, exact: ExactAttention, kind: Format
) -> HeadErrors:
    """Compare one head, given q, k, v and output (T, D) of the kernel, and its scores if they are known.

    Otherwise they and the probabilities are enclosed: as the exact ones of the q and k that the kernel stored, with the
    a-priori bound of its own error as a margin.
    """
    if not all(np.isfinite(part).all() for part in parts):
        return HeadErrors(UNBOUNDED, UNBOUNDED, UNBOUNDED, UNBOUNDED.upper)
    q, k, v = parts
    stored, bounds = attention(matrix(q), matrix(k), matrix(v)), score_bounds(q, k, kind)
    if kept is None:
        of_probabilities = probability_bounds(bounds, rows_of(stored.probabilities), kind)
        scores = largest(stored.scores - exact.scores, [number for row in bounds for number in row])
        probabilities = largest(stored.probabilities - exact.probabilities, of_probabilities)
    else:
        scores = distance(kept.scores, exact.scores)
        probabilities = distance(kept.probabilities, exact.probabilities)
    return HeadErrors(scores, probabilities, distance(out, stored.out), output_bound(bounds, v, kind))


def layer_errors(run: KernelRun, n: int, exact: ExactLayer) -> LayerErrors:
    """Compare block `n` of a run."""
    layer: KernelLayer = run.layers[n]
    outputs = np.split(layer.attn, len(exact.heads), axis=1)
    scores = probabilities = attn = own = NOTHING
    bound = 0.0
    kept = layer.heads or [None] * len(exact.heads)
    kind = FORMATS[run.precision]
    stored = split_heads(layer.qkv, len(exact.heads))
    for parts, out, of_head, head in zip(stored, outputs, kept, exact.heads, strict=True):
        errors = head_errors(parts, out, of_head, head, kind)
        scores, probabilities = scores.joined(errors.scores), probabilities.joined(errors.probabilities)
        attn, own = attn.joined(distance(out, head.out)), own.joined(errors.own)
        bound = max(bound, errors.own_bound)
    return LayerErrors(scores, probabilities, attn, distance(layer.x, exact.x), own, bound)


@dataclass(frozen=True)
class HeadOfModelErrors:
    """Distances of the results of one precision to the exact ones."""

    logits: Enclosure
    loss: Enclosure
    """Of the mean loss."""
    changed: int
    """Tokens whose largest logit is proven to be another one than the exact model's."""
    undecided: int
    """Tokens whose exact largest logit is closer to another than the balls can tell."""


class ExactHead:
    """The logits of the exact model, slice after slice of the vocabulary, compared with those of runs."""

    def __init__(self, targets: NDArray[np.int32], runs: tuple[KernelRun, ...]) -> None:
        rows = len(targets)
        self._targets, self._runs = targets.tolist(), runs
        self._sums: list[Ball] = [ball(0.0)] * rows
        self._chosen: list[Ball] = [ball(0.0)] * rows
        self._best: list[tuple[int, Ball] | None] = [None] * rows
        self._others: list[Ball | None] = [None] * rows
        self._distances = [NOTHING] * len(runs)

    def add(self, first: int, logits: BallMatrix) -> None:
        """Take the logits (T, tokens) of the tokens from `first` on."""
        for r, row in enumerate(rows_of(logits)):
            self._sums[r] = self._sums[r] + sum((number.exp() for number in row), ball(0.0))
            if first <= self._targets[r] < first + len(row):
                self._chosen[r] = row[self._targets[r] - first]
            for j, number in enumerate(row):
                self._compete(r, first + j, number)
        for i, run in enumerate(self._runs):
            part = run.logits[:, first : first + logits.ncols()]
            self._distances[i] = self._distances[i].joined(distance(part, logits))

    def _compete(self, r: int, token: int, number: Ball) -> None:
        """Keep the token of the largest midpoint, and the largest upper bound of all others."""
        best, loser = self._best[r], number
        if best is None:
            self._best[r] = token, number
            return
        if number.mid() > best[1].mid():
            self._best[r], loser = (token, number), best[1]
        upper, others = loser.upper(), self._others[r]
        if others is None or upper > others:
            self._others[r] = upper

    @property
    def loss(self) -> Ball:
        """The mean loss."""
        total = sum((s.log() - chosen for s, chosen in zip(self._sums, self._chosen, strict=True)), ball(0.0))
        return total / len(self._targets)

    def _decided(self) -> Iterator[int | None]:
        """Yield the token with the largest logit of each row; None if it is not proven to be the largest."""
        for best, others in zip(self._best, self._others, strict=True):
            assert best is not None, "a vocabulary has tokens"
            yield best[0] if others is None or best[1].lower() > others else None

    def errors(self) -> list[HeadOfModelErrors]:
        """Return the distances of each run, after all logits."""
        loss, tokens = self.loss, list(self._decided())
        undecided = tokens.count(None)
        found = []
        for run, logits in zip(self._runs, self._distances, strict=True):
            own = run.logits.argmax(axis=1).tolist()
            changed = sum(exact is not None and exact != token for exact, token in zip(tokens, own, strict=True))
            of_loss = magnitude(loss - run.loss) if np.isfinite(run.loss) else UNBOUNDED
            found.append(HeadOfModelErrors(logits, of_loss, changed, undecided))
        return found
