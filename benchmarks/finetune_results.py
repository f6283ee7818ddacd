"""The results of `benchmarks.finetune` as a table: pure functions of the measurements."""

from collections.abc import Sequence

from benchmarks.results import SideResult, ThroughputComparison, format_spread

HEADINGS = (
    "fine-tuning", "side", "tokens/s", "times the fastest peer", "GFLOP/s", "peak memory", "of the smallest peer's",
)  # fmt: skip


def finetune_rows(comparisons: Sequence[ThroughputComparison]) -> list[list[str]]:
    """Return the rows of the table, one per side, with the columns of `HEADINGS`."""
    return [_row(comparison, side) for comparison in comparisons for side in comparison.sides]


def _row(comparison: ThroughputComparison, side: SideResult) -> list[str]:
    fastest = comparison.best_peer
    smallest = min(comparison.peers, key=lambda peer: peer.peak_bytes, default=None)
    return [
        comparison.config,
        side.name,
        format_spread(side.tokens_per_s, 0),
        "" if fastest is None else "1" if side is fastest else format_spread(comparison.ratios(side, fastest)),
        f"{side.median * comparison.flops_per_token / 1e9:,.0f}",
        f"{side.peak_bytes / 1e9:.2f} GB",
        "" if smallest is None else f"{side.peak_bytes / smallest.peak_bytes:.2f}",
    ]


def finetune_markdown(comparisons: Sequence[ThroughputComparison], machine: str) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2),
        *("| " + " | ".join(row) + " |" for row in finetune_rows(comparisons)),
        "",
        f"{machine}. Medians of alternating rounds, with minimum and maximum in brackets; peak memory of the process",
        "of each side, loading of the model included. PyTorch's bf16 is autocast over float32 weights, `bf16 weights`",
        "has all of them and the moments in bfloat16, `bf16 model` all but the adapters. Checked before:",
        *(f"- {comparison.config}: {comparison.checked}" for comparison in comparisons),
    ]
    return "\n".join(lines) + "\n"
