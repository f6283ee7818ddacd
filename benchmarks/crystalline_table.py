"""The table of `benchmarks.crystalline`."""

import math
from collections.abc import Iterator
from statistics import mean

from benchmarks.crystalline_results import Difference, Results
from benchmarks.crystalline_rows import BASELINE, Variant, variants_of

HEADINGS = (
    "row", "form", "claimed", "ceiling of the speed", "measured speed", "loss at equal updates",
    "loss at equal seconds", "seeds",
)  # fmt: skip
UNKNOWN = "not measured"


def markdown_table(results: Results, config: str, precision: str) -> str:
    """Return the table of one configuration; losses are differences from the plain training."""
    plain = results.losses(config, Variant(BASELINE), precision, None)
    updates = results.updates(config, precision)
    title = f"`{config}`, {precision}: nothing measured"
    if plain and updates:
        title = (
            f"`{config}`, {precision}, {updates:,} updates: the plain training ends at {mean(plain.values()):.4f} "
            f"(mean of seeds {', '.join(map(str, sorted(plain)))})"
        )
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *_rows(results, config, precision)]
    return "\n".join([title, "", *("| " + " | ".join(cells) + " |" for cells in rows), ""])


def _rows(results: Results, config: str, precision: str) -> Iterator[list[str]]:
    for row, variant in variants_of(config):
        if row is None:
            continue
        speed = results.speed(config, variant, precision)
        equal = results.difference(config, variant, precision)
        yield [
            row.name,
            variant.name,
            row.claim,
            f"{row.ceiling_of(config, variant):.2f}",
            f"{speed.median:.2f} ({min(speed.ratios):.2f} to {max(speed.ratios):.2f})" if speed else UNKNOWN,
            _loss(equal),
            _loss(_at_equal_seconds(results, config, variant, precision)),
            str(equal.seeds) if equal else "0",
        ]


def _at_equal_seconds(results: Results, config: str, variant: Variant, precision: str) -> Difference | None:
    ratio, updates = results.ratio(config, variant, precision), results.updates(config, precision)
    if ratio is None or updates is None:
        return None
    return results.difference(config, variant, precision, round(updates * ratio))


def _loss(difference: Difference | None) -> str:
    if difference is None:
        return UNKNOWN
    error = "" if math.isnan(difference.error) else f" ± {difference.error:.4f}"
    return f"{difference.mean:+.4f}{error}"
