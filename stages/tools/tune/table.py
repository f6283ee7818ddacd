"""The printed result of `threadloom tune`: the table of trials, and the conclusions."""

import math

from rich.table import Table

from threadloom.stages.resolve import format_settings, format_value
from threadloom.stages.tools.tune.search import SearchResult
from threadloom.stages.tools.tune.space import ROUNDING, overrides_from
from threadloom.stages.tools.tune.stage_shares import describe_bottleneck

TRIALS_WANTED = 100
"""Approximate number of trials in a complete search."""


def trials_table(result: SearchResult) -> Table:
    """Return the table of alternatives, each with its speed relative to the best choice known when it was tried."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("varied")
    table.add_column("tried")
    table.add_column("instead of")
    table.add_column("tokens/s", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("spread", justify="right")
    table.add_column("rounds", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("rounding")
    shown, memory = "", {each.choice: each.trial.memory for each in result.measured}
    for row in result.compared:
        low, high = row.spread
        values = overrides_from(row.base, row.choice)
        table.add_row(
            "" if row.dimension == shown else row.dimension,
            format_settings(values),
            " ".join(format_value(getattr(row.base, name)) for name in values),
            f"{sorted(row.rates)[len(row.rates) // 2]:,.0f}",
            f"{row.ratio:.3f}",
            f"{low:.2f} to {high:.2f}",
            str(len(row.ratios)),
            _megabytes(memory.get(row.choice)),
            "changes" if row.changes_rounding else "same bits",
            style="bold" if row.choice == result.chosen else "",
        )
        shown = row.dimension
    return table


def conclusions(result: SearchResult) -> list[str]:
    """Return the sentences below the table."""
    sentences = [f"{result.trials} trials in {result.seconds:.0f} s. Choice: {result.reason}."]
    sentences += _explanations(result)
    chosen = result.chosen.differences(result.default)
    exact = {name: value for name, value in chosen.items() if name not in ROUNDING}
    rounding = {name: value for name, value in chosen.items() if name in ROUNDING}
    if exact:
        sentences.append(f"Without any change to the weights: {format_settings(exact)}.")
    if rounding:
        sentences.append(f"Changes the rounding, and is kept in the run's config.json: {format_settings(rounding)}.")
    if result.skipped:
        sentences.append(f"Skipped (budget exhausted): {', '.join(result.skipped)}; {_needed_budget(result)}.")
    return sentences


def _explanations(result: SearchResult) -> list[str]:
    """Return the bottleneck before each step to the choice, and the one that is left."""
    kept = result.chosen == result.default
    sentences = [
        f"{format_settings(overrides_from(row.base, row.choice))}, {row.ratio:.2f} times as fast: before it, "
        f"{describe_bottleneck(row.before)}."
        for row in result.compared
        if row.accepted and row.before and not kept
    ]
    if result.stages:
        name = "the defaults" if kept else "the choice"
        sentences.append(f"With {name}, {describe_bottleneck(result.stages)}.")
    return sentences


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f}"


def _needed_budget(result: SearchResult) -> str:
    """Return a text on the budget of a complete search, estimated from the duration of the trials."""
    seconds = result.seconds / max(result.trials, 1) * TRIALS_WANTED
    return f"a complete search takes about --budget {math.ceil(seconds / 30) * 30} here"
