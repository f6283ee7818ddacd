"""Log-probabilities that a model gives to tokens, computed for many sequences at a time by the threads of this process.

The sequences of a micro-batch have about the same length; shorter ones are padded at the end, which no token before it
depends on. Only the rows whose predictions are asked for reach the output projection, and equal inputs are computed
once, such as those of the choices of a question that consist of one token each.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats, TokenIds
from threadloom.pipeline import Cancelled
from threadloom.stages.data import IGNORED_TARGET
from threadloom.stages.inference.decoder import checked_ids
from threadloom.stages.inference.model import Model
from threadloom.stages.machine import thread_limit
from threadloom.stages.resolve import float32_settings
from threadloom.stages.step.float32 import Float32Compute

_ROWS = 256
"""Tokens of a micro-batch, about."""
_PADDING = 16
"""Lengths are padded to a multiple of this, or to the context."""


class ScoredTokens(NamedTuple):
    """Tokens to score, and those that the model reads before them."""

    inputs: TokenIds
    """(n,), 1 to `context` tokens. The model predicts a token after each of them."""
    targets: TokenIds
    """(m,), 1 to n tokens, which are compared with the last m predictions; `IGNORED_TARGET` for none."""


class TokenScores(NamedTuple):
    """The scores of the targets of a `ScoredTokens`."""

    log_probabilities: NDArray[np.float64]
    """(m,), in nats; 0 for no target."""
    greedy: NDArray[np.bool_]
    """(m,): True where the target is the most likely token."""


def score_tokens(
    model: Model, requests: Sequence[ScoredTokens], done: Callable[[int], None] = lambda _: None
) -> list[TokenScores]:
    """Return the scores of each request, which do not depend on the number of threads.

    `done` is called, from any thread, with the number of requests of each micro-batch that has been computed. Raises
    `GenerationError` for ids outside the vocabulary.
    """
    by_inputs: dict[bytes, list[int]] = {}
    for number, request in enumerate(requests):
        if (targets := request.targets[request.targets != IGNORED_TARGET]).size:
            checked_ids(targets, model.geometry)
        by_inputs.setdefault(checked_ids(request.inputs, model.geometry).tobytes(), []).append(number)
    groups = [[(number, requests[number]) for number in numbers] for numbers in by_inputs.values()]
    batches = list(_micro_batches(groups, model.geometry.context))
    count = max(1, min(thread_limit().count, len(batches)))
    workers = [_Worker(model) for _ in range(count)]
    found: dict[int, TokenScores] = {}

    def run(first: int) -> None:
        for batch in batches[first::count]:
            scores = workers[first].scores(batch)
            found.update(scores)
            done(len(scores))

    with float32_settings(), ThreadPoolExecutor(count, "evaluate") as pool:
        try:
            list(pool.map(run, range(count)))
        except BaseException:  # Ctrl-C, too: the pool waits for its threads
            for worker in workers:
                worker.abort()
            raise
    return [found[number] for number in range(len(requests))]


_Group = list[tuple[int, ScoredTokens]]
"""Requests with the same inputs, each with its number."""


def _micro_batches(groups: Iterable[_Group], context: int) -> Iterable[list[_Group]]:
    """Yield groups of inputs that are computed together, the longest first."""
    ordered = sorted(groups, key=lambda group: -len(group[0][1].inputs))
    while ordered:
        size = max(1, _ROWS // _padded(len(ordered[0][0][1].inputs), context))
        yield ordered[:size]
        del ordered[:size]


def _padded(length: int, context: int) -> int:
    return min(context, -(-length // _PADDING) * _PADDING)


class _Worker:
    """Computes micro-batches in one thread; it keeps its arrays for further ones of the same shape."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._shape = (0, 0)
        self._aborted = False

    def abort(self) -> None:
        """End the computation in another thread after its current micro-batch."""
        self._aborted = True

    def scores(self, batch: list[_Group]) -> dict[int, TokenScores]:
        """Return the scores of each request of a micro-batch by its number. Raises `Cancelled` after `abort`."""
        if self._aborted:
            raise Cancelled
        length = _padded(max(len(group[0][1].inputs) for group in batch), self._model.geometry.context)
        self._allocate(len(batch), length)
        compute, slot = self._compute, self._slot
        slot.ids[:] = 0
        rows, targets, numbers = list[int](), list[int](), list[tuple[int, int]]()
        for place, group in enumerate(batch):
            inputs = group[0][1].inputs
            slot.ids[place * length : place * length + len(inputs)] = inputs
            end = place * length + len(inputs)
            for number, request in group:
                rows += range(end - len(request.targets), end)
                targets += request.targets.tolist()
                numbers.append((number, len(request.targets)))
        compute.embed(self._model, slot)
        compute.forward(self._model, slot)
        found = self._scores_of_rows(np.array(rows), np.array(targets))
        ends = np.cumsum([count for _, count in numbers])
        return {
            number: TokenScores(found.log_probabilities[end - count : end], found.greedy[end - count : end])
            for (number, count), end in zip(numbers, ends, strict=True)
        }

    def _allocate(self, sequences: int, length: int) -> None:
        if self._shape != (sequences, length):
            self._compute = Float32Compute(replace(self._model.geometry, context=length), sequences)
            self._slot = self._compute.memory.allocate_evaluation_slot()
            self._logits: Floats = np.empty(self._compute.memory.logits_shape, np.float32)
            self._shape = sequences, length

    def _scores_of_rows(self, rows: NDArray[np.intp], targets: NDArray[np.intp]) -> TokenScores:
        """Return the scores of targets (n,) at rows (n,), which may repeat, of the micro-batch."""
        unique, place = np.unique(rows, return_inverse=True)
        order = np.argsort(place, kind="stable")
        log_probabilities, greedy = np.empty(len(rows)), np.empty(len(rows), bool)
        for first in range(0, len(unique), len(self._logits)):
            part = unique[first : first + len(self._logits)]
            logits = self._logits[: len(part)]
            self._compute.logits_of_rows(self._model, self._slot, part, logits)
            bounds = np.searchsorted(place[order], (first, first + len(part)))
            chosen = order[bounds[0] : bounds[1]]
            row, target = place[chosen] - first, targets[chosen]
            of_target, best = logits[row, target].astype(np.float64), logits.argmax(axis=1)
            ignored = target == IGNORED_TARGET
            log_probabilities[chosen] = np.where(ignored, 0.0, of_target - _log_sum_exp(logits, best)[row])
            greedy[chosen] = best[row] == target
        return TokenScores(log_probabilities, greedy)


def _log_sum_exp(logits: Floats, best: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return log(sum(exp(row))) of each row (n,) of logits (n, V), which are overwritten; `best` are their maxima."""
    largest: Floats = logits[np.arange(len(best)), best]
    logits -= largest[:, None]
    np.exp(logits, out=logits)
    sums: NDArray[np.float64] = logits.sum(axis=1).astype(np.float64)
    return largest.astype(np.float64) + np.log(sums)
