"""The search for a rule of the learning rate: its arithmetic on made-up losses, and its table on tiny models."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.learning_rates import Job, Search, config_of, report
from benchmarks.rate_search import (
    CHECKED,
    CONFIGURED,
    FITTED,
    Case,
    first_guess,
    fit_rule,
    is_on_grid,
    parabola_minimum,
    residual,
    searched,
    wanted_rates,
)
from threadloom.stages.config import ModelArchitecture
from threadloom.stages.resolve import load_config, validate
from threadloom.stages.resolve.learning_rate import RATE_RULE

CASES = [
    Case(channels, 1, 1, 32, batch, updates)
    for channels, batch, updates in itertools.product((32, 64, 192), (8, 64), (100, 700))
]


def quadratic(rate: float, best: float) -> float:
    return 2.0 + 0.1 * math.log(rate / best) ** 2


def test_the_fit_recovers_known_exponents() -> None:
    rule = dataclasses.replace(
        RATE_RULE, scale=3e-3, width=-0.8, tokens=0.25, updates=-0.15, widths=(32, 192), batches=(256, 2048),
        lengths=(100, 700),
    )  # fmt: skip
    found = fit_rule([(case, rule.rate(case.channels, case.tokens, case.updates)) for case in CASES])
    assert found == rule


def test_the_fit_has_the_configurations_too() -> None:
    """Their sizes are those that ship, and the rule of `auto` was fitted on them."""
    for name, (case, _) in zip(("small", "optimized", "llama-small"), CONFIGURED, strict=True):
        shipped = load_config(name)
        model = shipped.model
        assert case.architecture is model.architecture
        assert case[:5] == (model.channels, model.layers, model.heads, model.context, shipped.batch_size)
        assert RATE_RULE.covers(case.channels, case.tokens, case.updates)
    rates = [(case, RATE_RULE.rate(case.channels, case.tokens, case.updates)) for case in FITTED]
    assert fit_rule(rates).batches[1] < RATE_RULE.batches[1] == fit_rule([*rates, *CONFIGURED]).batches[1]


def test_models_that_vary_in_too_little_are_refused() -> None:
    alike = [case for case in CASES if case.updates == 100]
    with pytest.raises(ValueError, match="do not vary"):
        fit_rule([(case, 1e-3) for case in alike])


def test_the_parabola_finds_the_minimum_between_the_rates() -> None:
    losses = {1e-3 * 2.0**step: quadratic(1e-3 * 2.0**step, 2.7e-3) for step in range(-1, 4)}
    assert parabola_minimum(losses) == pytest.approx(2.7e-3)
    assert parabola_minimum({**losses, 4e-3: math.inf}) == 2e-3
    assert parabola_minimum({1e-3: 2.0, 2e-3: 3.0}) == 1e-3


@pytest.mark.parametrize("best", [1e-4, 3e-3, 0.2])
def test_a_search_goes_on_until_the_best_rate_is_between_two_others(best: float) -> None:
    case, losses = CASES[0], dict[float, float]()
    assert len(wanted_rates(case, losses)) == 3
    while wanted := wanted_rates(case, losses):
        losses[wanted[0]] = quadratic(wanted[0], best)
        assert is_on_grid(wanted[0])
    lowest = min(losses, key=losses.__getitem__)
    assert {lowest / 2, lowest * 2} <= losses.keys()
    assert abs(math.log2(lowest / best)) <= 0.5
    assert [found for found, *_ in searched([case, CASES[1]], {case.name: losses})] == [case]


def test_the_models_are_enough_and_their_configurations_valid() -> None:
    assert len(FITTED) >= 12 and len(CHECKED) == 6
    assert not {case.name for case in FITTED} & {case.name for case in CHECKED}
    for cases in (FITTED, CHECKED):
        assert any(case.architecture is ModelArchitecture.LLAMA for case in cases)
        for case in cases:
            validate(config_of(Job(case, first_guess(case), 2), ()))
    fit_rule([(case, first_guess(case)) for case in FITTED])


@pytest.mark.timeout(120)
def test_an_interrupted_search_goes_on_and_ends_with_a_table(tmp_path: Path) -> None:
    text, results = tmp_path / "text.txt", tmp_path / "results.jsonl"
    text.write_text("one two three four five six seven " * 100)
    fitted = [Case(8, 1, 1, 8, 2, 2), Case(16, 1, 1, 8, 2, 2), Case(8, 1, 1, 8, 4, 2), Case(8, 1, 1, 8, 2, 3)]
    checked = [Case(8, 1, 2, 8, 2, 2)]
    rows = [  # made-up results of the search, without the training at the rate of the rule
        {"model": case.name, "rate": 1e-3 * 2.0**step, "seed": 2, "loss": quadratic(2.0**step, 1.5), "seconds": 1.0}
        for case in (*fitted, *checked)
        for step in range(-1, 8)
    ]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(record=True, width=150)
    search = Search(results, (str(text),), workers=1, seeds=(2,))
    rule = report(search, fitted, checked, console)
    kept = [json.loads(line) for line in results.read_text().splitlines()]
    rate = rule.rate(8, 16, 2)
    assert [(row["model"], row["rate"]) for row in kept[len(rows) :]] == [(checked[0].name, rate)]
    assert math.isfinite(kept[-1]["loss"])
    said = console.export_text()
    assert f"{rate:.2e}" in said and f"{kept[-1]['loss']:.4f}" in said
    assert residual(rule, [(case, rate) for case in fitted]) == 0.0
    again = Search(results, (str(text),), workers=1, seeds=(2,))
    assert again.losses(checked[0]) == search.losses(checked[0])
