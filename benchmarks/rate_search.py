"""The search for a rule of the learning rate, without the training: models, rates to try, parabola, least squares."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from threadloom.stages.config import ModelArchitecture
from threadloom.stages.resolve import RateRule

BASE_RATE = 1e-3
"""The grid of rates is `BASE_RATE` times powers of 2."""
_GUESS_RATE, _GUESS_WIDTH, _GUESS_TOKENS, _GUESS_UPDATES = 4e-3, 128, 768, 2000
"""The known best rate of the configuration nanogpt-cpu, from which the first guess for a model follows."""


class Case(NamedTuple):
    """A model and the length of its training."""

    channels: int
    layers: int
    heads: int
    context: int
    batch_size: int
    updates: int
    architecture: ModelArchitecture = ModelArchitecture.GPT2

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.context * self.batch_size

    @property
    def cost(self) -> float:
        """Time of the training, in proportion."""
        return float(self.layers * self.channels**2 * self.tokens * self.updates)

    @property
    def name(self) -> str:
        """Name in tables and in the file of results."""
        return (
            f"{self.architecture.value}-w{self.channels}-l{self.layers}-h{self.heads}"
            f"-c{self.context}-b{self.batch_size}-u{self.updates}"
        )


FITTED = (
    Case(32, 2, 2, 32, 8, 1000),
    Case(32, 1, 1, 64, 32, 300),
    Case(32, 4, 2, 64, 8, 300),
    Case(48, 2, 2, 64, 16, 500),
    Case(64, 2, 4, 64, 4, 600),
    Case(64, 1, 2, 128, 8, 300),
    Case(64, 2, 2, 64, 32, 150),
    Case(64, 3, 4, 32, 16, 300),
    Case(96, 1, 3, 64, 8, 600),
    Case(96, 2, 3, 64, 16, 150),
    Case(128, 1, 4, 32, 8, 600),
    Case(128, 2, 4, 64, 8, 200),
    Case(192, 1, 6, 32, 8, 300),
    Case(192, 1, 4, 64, 16, 150),
    Case(32, 2, 2, 32, 8, 3000),
    Case(64, 1, 2, 64, 4, 2000),
    Case(96, 1, 3, 32, 8, 2000),
    Case(128, 1, 4, 32, 8, 2000),
    Case(48, 2, 2, 64, 16, 2000),
    Case(64, 2, 2, 64, 32, 600),
    Case(256, 2, 8, 64, 8, 300),
    Case(64, 2, 4, 64, 8, 400, ModelArchitecture.LLAMA),
)
"""The models of the fit that are searched here, which vary width, tokens of a batch and updates independently."""

CONFIGURED = (
    (Case(256, 2, 8, 128, 32, 200), 1.37e-3),  # small
    (Case(384, 4, 6, 128, 16, 150), 6.65e-4),  # optimized
    (Case(384, 8, 6, 256, 8, 150, ModelArchitecture.LLAMA), 1.05e-3),  # llama-small
)
"""Configurations with their best rates, which are part of the fit: measured apart, by `threadloom train` on a text in
BPE (docs/performance.md, "Learning rate of the configurations")."""

CHECKED = (
    Case(64, 3, 4, 64, 8, 500),
    Case(96, 1, 3, 128, 8, 200),
    Case(32, 1, 2, 64, 6, 1500),
    Case(160, 1, 4, 64, 8, 250),
    Case(224, 1, 7, 64, 4, 250),
    Case(96, 2, 4, 64, 8, 200, ModelArchitecture.LLAMA),
)
"""The models of the check, inside of the range of the fitted ones and a little outside."""


def first_guess(case: Case) -> float:
    """Return the point of the grid next to a guess of the best rate."""
    guess = (
        _GUESS_RATE
        * (case.channels / _GUESS_WIDTH) ** -0.7
        * (case.tokens / _GUESS_TOKENS) ** 0.3
        * (case.updates / _GUESS_UPDATES) ** -0.2
    )
    return BASE_RATE * 2.0 ** round(math.log2(guess / BASE_RATE))


def is_on_grid(rate: float) -> bool:
    """Return True for `BASE_RATE` times a power of 2."""
    steps = math.log2(rate / BASE_RATE)
    return abs(steps - round(steps)) < 1e-6


def wanted_rates(case: Case, losses: Mapping[float, float]) -> list[float]:
    """Return the rates to try next: the first three, then one past the end at which the best is; [] at the end."""
    guess = first_guess(case)
    if missing := [rate for rate in (guess, guess / 2, guess * 2) if rate not in losses]:
        return missing
    best = min(losses, key=losses.__getitem__)
    return [rate for rate in (best / 2, best * 2) if rate not in losses]


def parabola_minimum(losses: Mapping[float, float]) -> float:
    """Return the best rate: the minimum of the parabola in log rate through the best loss and its neighbours.

    The best rate itself if a neighbour is missing or diverged.
    """
    rates = sorted(losses)
    at = min(range(len(rates)), key=lambda index: losses[rates[index]])
    three = rates[max(at - 1, 0) : at + 2]
    if len(three) < 3 or not all(math.isfinite(losses[rate]) for rate in three):
        return rates[at]
    logs = np.log(np.array(three) / rates[at])
    square, slope, _ = np.polyfit(logs, [losses[rate] for rate in three], 2)
    return float(rates[at] * math.exp(-slope / (2 * square))) if square > 0 else rates[at]


def fit_rule(best: Sequence[tuple[Case, float]]) -> RateRule:
    """Return the least-squares fit of log rate to the models' best rates, rounded, with the ranges of the models.

    Raises ValueError for models that do not vary width, tokens and updates independently.
    """
    cases = [case for case, _ in best]
    rows = np.array([[1.0, *_logs(case)] for case in cases])
    solution, _, rank, _ = np.linalg.lstsq(rows, np.log([rate for _, rate in best]), rcond=None)
    if rank < rows.shape[1]:
        raise ValueError(f"{len(best)} models do not vary width, tokens and updates independently")
    scale, (width, tokens, updates) = float(np.exp(solution[0])), (round(float(power), 2) for power in solution[1:])
    return RateRule(
        float(f"{scale:.3g}"), width, tokens, updates,
        _range(case.channels for case in cases), _range(case.tokens for case in cases),
        _range(case.updates for case in cases),
    )  # fmt: skip


def rule_rate(rule: RateRule, case: Case) -> float:
    """Return the rate of a rule for a model."""
    return rule.rate(case.channels, case.tokens, case.updates)


def residual(rule: RateRule, best: Sequence[tuple[Case, float]]) -> float:
    """Return the root mean square of log(rate of the rule / best rate)."""
    return math.sqrt(mean(math.log(rule_rate(rule, case) / rate) ** 2 for case, rate in best))


def _logs(case: Case) -> list[float]:
    return [math.log(size) for size in RateRule.relative(case.channels, case.tokens, case.updates)]


def _range(values: Iterable[int]) -> tuple[int, int]:
    found = sorted(values)
    return found[0], found[-1]


def searched(cases: Sequence[Case], losses: Mapping[str, Mapping[float, float]]) -> Iterator[tuple[Case, float, float]]:
    """Iterate over the models whose search is over: model, best rate by the parabola, lowest loss found."""
    for case in cases:
        found = losses.get(case.name, {})
        if found and not wanted_rates(case, found):
            yield case, parabola_minimum(found), min(found.values())
