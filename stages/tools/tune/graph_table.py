"""The printed result of `threadloom tune --pipeline`: the table of trials, the reasons, and the values to write."""

import json
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from threadloom.pipeline.tuning import Freedom, GraphSizes, GraphTuning, SizesTried


def sizes_table(tried: Iterable[SizesTried], freedoms: Mapping[str, Freedom]) -> Table:
    """Return the table of the sizes that were tried, each with its speed relative to the best ones before."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("tried", "instead of"):
        table.add_column(name, no_wrap=True)
    for name in ("items/s", "ratio", "spread", "rounds"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in tried:
        low, high = row.spread
        table.add_row(
            _changes(row.choice, row.base, freedoms),
            _values(row.base, row.choice),
            _format_rate(sorted(row.rates)[len(row.rates) // 2]),
            f"{row.ratio:.3f}",
            f"{low:.2f} to {high:.2f}",
            str(len(row.ratios)),
            "failed" if row.failure else "accepted" if row.accepted else "",
            style="bold" if row.accepted else "",
        )
    return table


def graph_conclusions(result: GraphTuning, freedoms: Mapping[str, Freedom]) -> list[str]:
    """Return the sentences below the table."""
    sentences = []
    if result.chosen != result.declared:
        sentences += [
            f"{_changes(row.choice, row.base, freedoms)}: because before that {row.why}."
            for row in result.tried
            if row.accepted
        ]
    sentences += [
        f"{_changes(row.choice, row.base, freedoms)} failed: {row.failure}." for row in result.tried if row.failure
    ]
    sentences.append(f"{result.trials} trials in {result.seconds:.0f} s. Choice: {result.reason}.")
    sentences.append(f"Now {result.bottleneck}.")
    sentences += _why_not_more(result, freedoms)
    if not result.complete:
        sentences.append("The budget ended the search; a larger --budget may find more.")
    return sentences


def values_to_write(result: GraphTuning, freedoms: Mapping[str, Freedom]) -> list[str]:
    """Return the declarations with the chosen sizes, one line for each node that changes."""
    lines = []
    for size in result.chosen.differences(result.declared):
        freedom = freedoms[size.name]
        before = freedom.arguments(result.declared[size.name])
        call = f"graph.{freedom.kind.value}({json.dumps(size.name, ensure_ascii=False)}, ..., "
        lines.append(f"{call}{freedom.arguments(size)})  # instead of {before}")
    return lines


def newly_parallel(result: GraphTuning, freedoms: Mapping[str, Freedom]) -> list[str]:
    """Return the stages that had one worker and have several now; coroutines share the thread of their event loop."""
    return [
        size.name
        for size in result.chosen.differences(result.declared)
        if freedoms[size.name].keyword == "workers" and size.workers > 1 and result.declared[size.name].workers == 1
    ]


def _why_not_more(result: GraphTuning, freedoms: Mapping[str, Freedom]) -> list[str]:
    """Return why the stages that limit the speed have no more workers, where their number may not vary."""
    name = result.limiting
    if name is None or freedoms[name].workers:
        return []
    return [f"{name} keeps its workers: {freedoms[name].why_fixed}."]


def _changes(sizes: GraphSizes, other: GraphSizes, freedoms: Mapping[str, Freedom]) -> str:
    parts: list[str] = []
    for size in sizes.differences(other):
        old = other[size.name]
        values = [f"{freedoms[size.name].keyword}={size.workers}"] if size.workers != old.workers else []
        values += [f"capacity={size.capacity}"] if size.capacity != old.capacity else []
        parts.append(f"{size.name} {' '.join(values)}")
    return _shortened(parts)


def _values(sizes: GraphSizes, other: GraphSizes) -> str:
    """Return the values that differ from those of `other`, without names."""
    pairs = [(size, other[size.name]) for size in sizes.differences(other)]
    return _shortened(
        [
            " ".join(
                str(value)
                for value, different in ((size.workers, old.workers), (size.capacity, old.capacity))
                if value != different
            )
            for size, old in pairs
        ]
    )


def _shortened(parts: Sequence[str]) -> str:
    return ", ".join(parts) if len(parts) <= 3 else f"{', '.join(parts[:2])} and {len(parts) - 2} more"


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
