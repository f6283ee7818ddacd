"""A picture of a trace: the batch that each worker processes over time.

Matplotlib is imported when a picture is drawn, without windows or pyplot, so any thread may call `draw_timeline`.
"""

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from threadloom.pipeline.observe.figures import render_png
from threadloom.pipeline.observe.trace_event import TraceEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#4c78a8", "#f2a541", "#5aa469", "#b279a2", "#e4695e", "#6fb7b7", "#9d7660", "#8a8fbf")
"""Colours of consecutive batches; neighbours are easily distinguished."""
LIGHT = ("#f2a541", "#6fb7b7", OTHER := "#c3c9d0")  # colours that need dark text
INK, FAINT, BAND = "#22272e", "#7b848e", "#f4f6f8"
LEFT, WIDTH = 0.115, 0.825  # left edge and width of the rows, as shares of the width of the picture
CAPTION = (
    "A bar is one call of a stage function, with the number of its {key}. "
    "A gap is a wait for input, for a resource, or for capacity downstream."
)
ROW = 0.36  # height of a row in inches
LETTER = 0.072  # width of a digit in a bar in inches

Worker = tuple[str, int]
"""The name of a stage, and the index of a worker in it."""


class TimelineOptions(TypedDict, total=False):
    """Keyword arguments of `draw_timeline`."""

    key: str
    """The entry of the label that identifies the batch. "batch" by default."""
    last: int
    """Draw from the start of the last `last` batches. 4 by default."""
    window: tuple[int, int] | None
    """The interval to draw instead: (start, end) in nanoseconds of the run's clock."""
    stages: Sequence[str] | None
    """The stages to draw, in this order. All by default, in the order of their first events."""
    title: str | None
    width: float
    """Width of the picture in inches. 12 by default."""
    dpi: int
    """Pixels per inch. 150 by default."""


@dataclass(frozen=True)
class Timeline:
    """The content of a picture."""

    events: Sequence[TraceEvent]
    """The events within the interval."""
    rows: dict[Worker, int]
    start: int
    end: int
    """The interval, in nanoseconds of the run's clock."""
    key: str
    """The entry of the label that identifies the batch."""
    colours: dict[Hashable, str]
    """Batch → colour."""

    @property
    def duration(self) -> int:
        """Length of the interval in nanoseconds, at least 1."""
        return max(1, self.end - self.start)

    def clip(self, event: TraceEvent) -> tuple[int, int]:
        """Return start and end of an event within the interval, in nanoseconds since its start."""
        start, end = (max(self.start, min(self.end, each)) for each in (event.start_ns, event.end_ns))
        return start - self.start, end - self.start


def draw_timeline(
    events: Iterable[TraceEvent], path: str | os.PathLike[str], **options: Unpack[TimelineOptions]
) -> None:
    """Draw a PNG with one row per worker and one bar per call, coloured and numbered by batch.

    `TimelineOptions` documents the keyword arguments. Raises ValueError if there are no events to draw.
    """
    timeline = _timeline(events, options)
    Path(path).write_bytes(render_png(partial(_timeline_figure, timeline, options)))


def _timeline_figure(timeline: Timeline, options: TimelineOptions) -> "Figure":
    from matplotlib.figure import Figure

    width, rows = options.get("width", 12.0), len(timeline.rows)
    height = rows * ROW + 1.9
    figure = Figure(figsize=(width, height), dpi=options.get("dpi", 150), facecolor="white")
    axes = figure.add_axes((LEFT, 0.75 / height, WIDTH, rows * ROW / height))
    _draw_rows(axes, timeline)
    _draw_bars(axes, timeline, inches=width * WIDTH)
    _draw_frame(axes, timeline)
    _mark_most_concurrent(axes, timeline)
    title = options.get("title") or "Timeline"
    figure.text(LEFT, 1 - 0.36 / height, title, color=INK, fontsize=13, fontweight="bold")
    figure.text(LEFT, 0.14 / height, CAPTION.format(key=timeline.key), color=FAINT, fontsize=8.5)
    _draw_legend(figure, timeline, height)
    return figure


def _timeline(events: Iterable[TraceEvent], options: TimelineOptions) -> Timeline:
    key, stages = options.get("key", "batch"), options.get("stages")
    selected = [event for event in events if stages is None or event.stage in stages]
    if not selected:
        raise ValueError(
            "a timeline needs at least one event, got none: pass a trace to the run, and check the names in `stages`"
        )
    start, end = options.get("window") or last_batches(selected, key, options.get("last", 4))
    shown = [event for event in selected if event.end_ns > start and event.start_ns < end]
    return Timeline(shown, timeline_rows(selected, stages), start, end, key, batch_colours(shown, key))


def last_batches(events: Sequence[TraceEvent], key: str, last: int) -> tuple[int, int]:
    """Return the interval from the start of the last `last` batches to the end of all events, in nanoseconds."""
    first_start: dict[Any, int] = {}
    for event in sorted(events, key=lambda event: event.start_ns):
        if key in event.label:
            first_start.setdefault(event.label[key], event.start_ns)
    starts = sorted(first_start.values()) or [min(event.start_ns for event in events)]
    return starts[-min(last, len(starts))], max(event.end_ns for event in events)


def timeline_rows(events: Sequence[TraceEvent], stages: Sequence[str] | None) -> dict[Worker, int]:
    """Return worker → row; the stages are in the order of `stages`, or of their first events if it is None."""
    order = list(stages or dict.fromkeys(event.stage for event in sorted(events, key=lambda event: event.start_ns)))
    pairs = {(event.stage, event.worker) for event in events}
    return {pair: row for row, pair in enumerate(sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1])))}


def batch_colours(events: Sequence[TraceEvent], key: str) -> dict[Hashable, str]:
    """Return batch → colour, for the batches in the entry `key` of the labels."""
    batches = {event.label[key] for event in events if key in event.label}
    ordered = sorted(batches, key=lambda batch: (isinstance(batch, str), batch))
    # The colour of a number is the same in all pictures of a run; names get colours in order.
    places = [batch if isinstance(batch, int) else place for place, batch in enumerate(ordered)]
    return {batch: PALETTE[place % len(PALETTE)] for batch, place in zip(ordered, places, strict=True)}


def _draw_rows(axes: "Axes", timeline: Timeline) -> None:
    """Draw stage names on the left, a band for every other stage, and the busy shares on the right."""
    busy = dict.fromkeys(timeline.rows, 0)
    for event in timeline.events:
        start, end = timeline.clip(event)
        busy[event.stage, event.worker] += end - start
    left = axes.get_yaxis_transform()
    for place, stage in enumerate(dict.fromkeys(stage for stage, _ in timeline.rows)):
        own = {worker: row for (name, worker), row in timeline.rows.items() if name == stage}
        top, bottom = min(own.values()), max(own.values())
        if place % 2 == 0:
            axes.axhspan(top - 0.5, bottom + 0.5, color=BAND, zorder=0, linewidth=0)
        axes.text(-0.028, (top + bottom) / 2, stage, transform=left, ha="right", va="center", color=INK, fontsize=10)
        for worker, row in own.items():
            share = f"{busy[stage, worker] / timeline.duration:.0%}"
            if len(own) > 1:
                axes.text(-0.009, row, str(worker), transform=left, ha="right", va="center", color=FAINT, fontsize=8)
            axes.text(1.008, row, share, transform=left, ha="left", va="center", color=FAINT, fontsize=8.5)


def _draw_bars(axes: "Axes", timeline: Timeline, inches: float) -> None:
    """Draw the bars, with the batch in those that have enough space; `inches` is the width of the rows."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    scale = inches * 1e6 / timeline.duration  # inches per millisecond
    patches, faces, edges = [], [], []
    for event in timeline.events:
        begin, stop = (each / 1e6 for each in timeline.clip(event))
        row = timeline.rows[event.stage, event.worker]
        batch = event.label.get(timeline.key)
        # At least 1.5 pixels wide, so that short calls are visible.
        patches.append(Rectangle((begin, row - 0.38), max(stop - begin, 0.01 / scale), 0.76))
        faces.append(timeline.colours.get(batch, OTHER))
        edges.append("white" if (stop - begin) * scale > 0.04 else "none")  # an edge would cover a thin bar
        text = "" if batch is None else str(batch)
        if text and (stop - begin) * scale > LETTER * len(text) + 0.03:
            ink = INK if faces[-1] in LIGHT else "white"
            middle = (begin + stop) / 2
            axes.text(middle, row, text, ha="center", va="center_baseline", color=ink, fontsize=8.5, clip_on=True)
    axes.add_collection(PatchCollection(patches, facecolor=faces, edgecolor=edges, linewidth=0.6, zorder=2))


def _draw_frame(axes: "Axes", timeline: Timeline) -> None:
    axes.set_xlim(0, timeline.duration / 1e6)
    axes.set_ylim(len(timeline.rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.text(1.0, -0.5, "  busy", transform=axes.get_yaxis_transform(), va="bottom", color=FAINT, fontsize=8.5)
    axes.xaxis.set_major_formatter("{x:g} ms")
    axes.tick_params(axis="x", colors=FAINT, labelsize=9, length=3, width=0.6)
    axes.grid(axis="x", color="#dfe3e8", linewidth=0.6, zorder=1)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cfd5db")


def _mark_most_concurrent(axes: "Axes", timeline: Timeline) -> None:
    """Mark the time at which the most batches are processed concurrently, and list them by stage."""
    best = most_concurrent(timeline)
    if best is None:
        return
    time, running = best
    batches: dict[str, list[str]] = {}
    for event in sorted(running, key=lambda event: (event.stage, event.worker)):
        batches.setdefault(event.stage, []).append(str(event.label[timeline.key]))
    order = [stage for stage in dict.fromkeys(stage for stage, _ in timeline.rows) if stage in batches]
    text = "  ‖  ".join(f"{stage} {', '.join(dict.fromkeys(batches[stage]))}" for stage in order)
    at = (time - timeline.start) / 1e6
    share = (time - timeline.start) / timeline.duration
    axes.plot(
        [at, at], [-0.5, len(timeline.rows) - 0.5], color=INK, alpha=0.75, linewidth=0.9, linestyle=(0, (4, 3)),
        zorder=2.5,
    )  # fmt: skip
    side = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    axes.text(at, -0.68, f"at once:  {text}", ha=side, va="bottom", color=INK, fontsize=9)


def most_concurrent(timeline: Timeline) -> tuple[int, list[TraceEvent]] | None:
    """Return the time with the most batches in progress, and the events at that time; None if there are never two.

    Ties are resolved by the number of workers, then by the length of the interval, of which the midpoint is returned.
    """
    key = timeline.key
    events = [event for event in timeline.events if key in event.label]
    edges = {each for event in events for each in (event.start_ns, event.end_ns)} | {timeline.start, timeline.end}
    starts = sorted(events, key=lambda event: event.start_ns)
    best: tuple[tuple[int, int, int], int, list[TraceEvent]] | None = None
    running: list[TraceEvent] = []
    following = 0
    for begin, stop in pairwise(sorted(edges)):
        while following < len(starts) and starts[following].start_ns <= begin:
            running.append(starts[following])
            following += 1
        running = [event for event in running if event.end_ns > begin]
        batches = len({event.label[key] for event in running})
        rank = (batches, len(running), stop - begin)
        inside = timeline.start <= begin and stop <= timeline.end
        if inside and batches > 1 and (best is None or rank > best[0]):
            best = (rank, (begin + stop) // 2, running.copy())
    return None if best is None else best[1:]


def _draw_legend(figure: "Figure", timeline: Timeline, height: float) -> None:
    from matplotlib.patches import Patch

    some = list(timeline.colours.items())[-len(PALETTE) :]  # colours repeat for more; bars contain the numbers
    if not some:
        return
    handles = [Patch(facecolor=colour, label=f"{timeline.key} {batch}") for batch, colour in some]
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
