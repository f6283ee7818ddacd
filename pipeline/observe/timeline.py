"""A picture of a trace: who worked on which batch, and what ran at the same time.

Matplotlib is imported when a picture is drawn, and only its Figure is used: no window, no pyplot, no global state, so
this may be called from any thread.
"""

import os
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from threadloom.pipeline.observe.trace_event import TraceEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#4c78a8", "#f2a541", "#5aa469", "#b279a2", "#e4695e", "#6fb7b7", "#9d7660", "#8a8fbf")
"""Neighbouring batches get neighbouring colours, so that two in a row are told apart at a glance."""
LIGHT = ("#f2a541", "#6fb7b7", OTHER := "#c3c9d0")  # of these, the ones that need dark figures on them
INK, FAINT, BAND = "#22272e", "#7b848e", "#f4f6f8"
LEFT, WIDE = 0.115, 0.825  # where the rows begin and how wide they are, as shares of the picture
CAPTION = (
    "A bar is one call of a stage function, with the number of its {key}. "
    "A gap is waiting: for input, for a resource, or for room behind."
)
ROW = 0.36  # inches a row
LETTER = 0.072  # inches a digit of the size used in bars


def draw_timeline(
    events: Iterable[TraceEvent],
    path: str | os.PathLike[str],
    *,
    key: str = "batch",
    last: int = 4,
    window: tuple[int, int] | None = None,
    stages: Sequence[str] | None = None,
    title: str | None = None,
    width: float = 12.0,
    dpi: int = 150,
) -> None:
    """Draw a PNG with a row per stage worker and a bar per call, coloured and numbered by the item's batch.

    Shown is `window`, from and to in nanoseconds of the run's clock, or else everything from the start of the `last`
    batches on. `key` is the entry of the label that counts as the batch. `stages` picks and orders the stages; without
    it they come in the order in which they first ran.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picked = [event for event in events if stages is None or event.stage in stages]
    if not picked:
        raise ValueError(
            "a timeline needs events, and there are none: was the run given a trace, are the stages named?"
        )
    start, end = window or _last_batches(picked, key, last)
    shown = [event for event in picked if event.end_ns > start and event.start_ns < end]
    rows = _rows(picked, stages)
    height = len(rows) * ROW + 1.9
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((LEFT, 0.75 / height, WIDE, len(rows) * ROW / height))
    colours = _colours(shown, key)
    _draw_rows(axes, rows, shown, (start, end))
    _draw_bars(axes, rows, shown, (start, end), key, colours, width * WIDE)
    _draw_frame(axes, rows, (start, end))
    _draw_moment(axes, rows, shown, (start, end), key)
    figure.text(LEFT, 1 - 0.36 / height, title or "What ran when", color=INK, fontsize=13, fontweight="bold")
    figure.text(LEFT, 0.14 / height, CAPTION.format(key=key), color=FAINT, fontsize=8.5)
    _draw_legend(figure, key, colours, height)
    figure.savefig(path, format="png")


def _last_batches(events: Sequence[TraceEvent], key: str, last: int) -> tuple[int, int]:
    first_start: dict[Any, int] = {}
    for event in sorted(events, key=lambda event: event.start_ns):
        if key in event.label:
            first_start.setdefault(event.label[key], event.start_ns)
    starts = sorted(first_start.values()) or [min(event.start_ns for event in events)]
    return starts[-min(last, len(starts))], max(event.end_ns for event in events)


def _rows(events: Sequence[TraceEvent], stages: Sequence[str] | None) -> dict[tuple[str, int], int]:
    order = list(stages or dict.fromkeys(event.stage for event in sorted(events, key=lambda event: event.start_ns)))
    pairs = {(event.stage, event.worker) for event in events}
    return {pair: row for row, pair in enumerate(sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1])))}


def _colours(events: Sequence[TraceEvent], key: str) -> dict[Hashable, str]:
    batches = {event.label[key] for event in events if key in event.label}
    ordered = sorted(batches, key=lambda batch: (isinstance(batch, str), batch))
    # A number keeps its colour in every picture of a run; names take the colours in turn.
    places = [batch if isinstance(batch, int) else place for place, batch in enumerate(ordered)]
    return {batch: PALETTE[place % len(PALETTE)] for batch, place in zip(ordered, places, strict=True)}


def _draw_rows(
    axes: "Axes", rows: dict[tuple[str, int], int], events: Sequence[TraceEvent], window: tuple[int, int]
) -> None:
    """Stage names on the left, a band behind every other stage, the busy share on the right."""
    start, end = window
    stages = list(dict.fromkeys(stage for stage, _ in rows))
    for place, stage in enumerate(stages):
        own = [row for (name, _), row in rows.items() if name == stage]
        if place % 2 == 0:
            axes.axhspan(own[0] - 0.5, own[-1] + 0.5, color=BAND, zorder=0, linewidth=0)
        left = axes.get_yaxis_transform()
        middle = (own[0] + own[-1]) / 2
        axes.text(-0.028, middle, stage, transform=left, ha="right", va="center", color=INK, fontsize=10)
        for (name, worker), row in rows.items():
            if name != stage:
                continue
            busy = sum(
                min(event.end_ns, end) - max(event.start_ns, start)
                for event in events
                if (event.stage, event.worker) == (name, worker)
            )
            share = f"{busy / max(1, end - start):.0%}"
            if len(own) > 1:
                axes.text(-0.009, row, str(worker), transform=left, ha="right", va="center", color=FAINT, fontsize=8)
            axes.text(1.008, row, share, transform=left, ha="left", va="center", color=FAINT, fontsize=8.5)


def _draw_bars(
    axes: "Axes",
    rows: dict[tuple[str, int], int],
    events: Sequence[TraceEvent],
    window: tuple[int, int],
    key: str,
    colours: dict[Hashable, str],
    inches: float,
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    start, end = window
    scale = inches * 1e6 / max(1, end - start)  # inches a millisecond
    patches, faces, edges = [], [], []
    for event in events:
        begin, stop = ((max(start, min(end, each)) - start) / 1e6 for each in (event.start_ns, event.end_ns))
        row = rows[event.stage, event.worker]
        batch = event.label.get(key)
        # A pixel and a half is kept even for the shortest call, so that nothing that ran is invisible.
        patches.append(Rectangle((begin, row - 0.38), max(stop - begin, 0.01 / scale), 0.76))
        faces.append(colours.get(batch, OTHER))
        edges.append("white" if (stop - begin) * scale > 0.04 else "none")  # on a thin bar the edge would be all
        text = "" if batch is None else str(batch)
        if text and (stop - begin) * scale > LETTER * len(text) + 0.03:
            ink = INK if faces[-1] in LIGHT else "white"
            middle = (begin + stop) / 2
            axes.text(middle, row, text, ha="center", va="center_baseline", color=ink, fontsize=8.5, clip_on=True)
    axes.add_collection(PatchCollection(patches, facecolor=faces, edgecolor=edges, linewidth=0.6, zorder=2))


def _draw_frame(axes: "Axes", rows: dict[tuple[str, int], int], window: tuple[int, int]) -> None:
    axes.set_xlim(0, max(1, window[1] - window[0]) / 1e6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.text(1.0, -0.5, "  busy", transform=axes.get_yaxis_transform(), va="bottom", color=FAINT, fontsize=8.5)
    axes.xaxis.set_major_formatter("{x:g} ms")
    axes.tick_params(axis="x", colors=FAINT, labelsize=9, length=3, width=0.6)
    axes.grid(axis="x", color="#dfe3e8", linewidth=0.6, zorder=1)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cfd5db")


def _draw_moment(
    axes: "Axes",
    rows: dict[tuple[str, int], int],
    events: Sequence[TraceEvent],
    window: tuple[int, int],
    key: str,
) -> None:
    """Mark the moment at which the most batches were worked on at once, and say which stage had which."""
    best = _richest_moment([event for event in events if key in event.label], window, key)
    if best is None:
        return
    moment, running = best
    batches: dict[str, list[str]] = {}
    for event in sorted(running, key=lambda event: (event.stage, event.worker)):
        batches.setdefault(event.stage, []).append(str(event.label[key]))
    order = [stage for stage in dict.fromkeys(stage for stage, _ in rows) if stage in batches]
    words = "  ‖  ".join(f"{stage} {', '.join(dict.fromkeys(batches[stage]))}" for stage in order)
    at = (moment - window[0]) / 1e6
    share = at / ((window[1] - window[0]) / 1e6)
    axes.plot(
        [at, at], [-0.5, len(rows) - 0.5], color=INK, alpha=0.75, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2.5
    )
    side = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    axes.text(at, -0.68, f"at once:  {words}", ha=side, va="bottom", color=INK, fontsize=9)


def _richest_moment(
    events: Sequence[TraceEvent], window: tuple[int, int], key: str
) -> tuple[int, list[TraceEvent]] | None:
    """Return when the most batches are worked on, by the most workers, for longest; None if never two batches."""
    edges = sorted({each for event in events for each in (event.start_ns, event.end_ns)} | set(window))
    starts = sorted(events, key=lambda event: event.start_ns)
    best: tuple[tuple[int, int, int], int, list[TraceEvent]] | None = None
    running: list[TraceEvent] = []
    following = 0
    for begin, stop in pairwise(edges):
        while following < len(starts) and starts[following].start_ns <= begin:
            running.append(starts[following])
            following += 1
        running = [event for event in running if event.end_ns > begin]
        batches = len({event.label[key] for event in running})
        rank = (batches, len(running), stop - begin)
        inside = window[0] <= begin and stop <= window[1]
        if inside and batches > 1 and (best is None or rank > best[0]):
            best = (rank, (begin + stop) // 2, running.copy())
    return None if best is None else best[1:]


def _draw_legend(figure: Any, key: str, colours: dict[Hashable, str], height: float) -> None:
    from matplotlib.patches import Patch

    some = list(colours.items())[-len(PALETTE) :]  # beyond that colours repeat, and the numbers in the bars tell
    if not some:
        return
    handles = [Patch(facecolor=colour, label=f"{key} {batch}") for batch, colour in some]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(LEFT - 0.006, 1 - 0.42 / height),
        borderaxespad=0.2,
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=1.3,
    )
