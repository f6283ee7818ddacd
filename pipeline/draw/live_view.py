"""A graph at work, live on a terminal: rates, queues, shares of time, and what sets the pace in words.

    with graph.start() as run, LiveView(run.statistics) as view:
        for item in view.over(run):
            ...

The picture is a pure function of frozen statistics (`GraphView`), so that tests draw it without a run. No thread is
started: the caller's thread draws, at most four times a second, whenever it comes by. A drawing takes 1 to 2 ms.
Where there is no terminal, a line every few seconds says the same.

rich is imported when there is something to show.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from threadloom.pipeline.draw.text import plain
from threadloom.pipeline.observe import (
    RunStatistics,
    StageStatistics,
    diagnose,
    format_clock,
    format_duration,
    format_rate,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

Item = TypeVar("Item")

LIVE_INTERVAL = 0.25
"""Seconds between two drawings."""
LINE_INTERVAL = 5.0
"""Seconds between two lines where the output is no terminal."""
WINDOW = 8
"""Drawings that rates and shares look back on: two seconds of them."""
LONGEST = 28  # letters of a name that are shown
GAUGE = 6  # cells of a queue


class GraphView:
    """The picture, as wide as the console lets it be."""

    def __init__(self, statistics: RunStatistics, earlier: RunStatistics | None = None) -> None:
        """Show what happened between `earlier` and `statistics`; without `earlier`, since the run began."""
        self._now = statistics
        self._late = statistics.since(earlier)
        self._diagnosis = diagnose(self._late)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Lay the lines out; each is one Text, which is far cheaper than rich's tables."""
        width, ascii_only = min(options.max_width, 130), options.ascii_only
        yield _line((plain(self._now.graph), "bold"), (f"  {format_clock(int(self._now.elapsed))}", "dim"))
        yield from self._stages(width, ascii_only)
        yield _line((plain(self._diagnosis.why), "bold"), wrap=True)
        if self._diagnosis.remedy:
            yield _line((f"{'->' if ascii_only else '→'} {plain(self._diagnosis.remedy)}", ""), wrap=True)

    def _stages(self, width: int, ascii_only: bool) -> "Iterator[Text]":
        names = {stage.name: _name(stage) for stage in self._late.stages}
        wide = max(map(len, names.values()), default=0)
        others = wide + 35  # columns that are always there
        times = width >= others + 17 + 20  # whether there is room for p50 and p99
        bar = max(6, min(40, width - others - (17 if times else 0)))
        busy, blocked, waiting = ("#", "!", ".") if ascii_only else ("█", "▒", "░")
        legend = [(f"{busy} busy ", "green"), (f"{blocked} blocked ", "yellow"), (f"{waiting} waiting", "bright_black")]
        room = bar - sum(len(words) for words, _ in legend)
        yield _line(
            (" " * (wide + 2), ""),
            *(legend if room >= 0 else ()),
            (" " * (room if room >= 0 else bar), ""),
            (f"{'busy':>5}{'rate':>11}  {'queue in front':<15}", "dim"),
            (f"{'p50':>8}{'p99':>9}" if times else "", "dim"),
        )
        for stage in self._late.stages:
            strong = "bold" if stage.name == self._diagnosis.stage else ""
            first = round(min(1.0, stage.busy_share) * bar)
            second = round(min(1.0, stage.busy_share + stage.blocked_share) * bar) - first
            tasks = (
                f"{format_duration(stage.tasks.p50):>8}{format_duration(stage.tasks.p99):>9}"
                if stage.tasks.count
                else ""
            )
            yield _line(
                (f"{names[stage.name]:<{wide}}  ", strong),
                (busy * first, "green"),
                (blocked * second, "yellow"),
                (waiting * (bar - first - second), "bright_black"),
                (f"{stage.busy_share:>5.0%}", strong),
                (f"{format_rate(stage.items_out, self._late.elapsed):>11}  ", strong),
                (f"{_queue(stage, ascii_only):<15}", "yellow" if _full(stage) else "dim"),
                (tasks if times else "", "dim"),
            )


def status_line(statistics: RunStatistics, earlier: RunStatistics | None = None) -> str:
    """Return the state in one line of plain text, for logs."""
    late = statistics.since(earlier)
    parts = []
    for stage in late.stages:
        queue = f" {stage.channel.depth}/{stage.channel.capacity}" if stage.channel else ""
        rate = format_rate(stage.items_out, late.elapsed)
        parts.append(f"{plain(stage.name)}{queue} {rate} {stage.busy_share:.0%} busy")
    head = f"{plain(statistics.graph)} {format_clock(int(statistics.elapsed))}"
    return f"{head}: {', '.join(parts)}; {plain(diagnose(late).why)}"


class LiveView:
    """Shows a run while its block lasts. Owned by one thread: the one that calls `update`."""

    def __init__(
        self,
        statistics: Callable[[], RunStatistics],
        console: "Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """`statistics` is `run.statistics`. `report` takes the lines where `console` is no terminal."""
        from rich.console import Console
        from rich.live import Live

        self._statistics = statistics
        self._console = console or Console()
        self._clock = clock
        self._report = report or self._print
        self._next = -math.inf
        # The drawings of late, oldest first: rates are over the time between the first of them and now.
        self._earlier: deque[RunStatistics] = deque(maxlen=WINDOW if self.is_live else 1)
        # Lines that are printed meanwhile appear above: Live puts itself in the place of stdout and stderr.
        self._live: Live | None = (
            Live(console=self._console, auto_refresh=False, vertical_overflow="crop") if self.is_live else None
        )

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def update(self) -> None:
        """Draw if the last drawing is long enough ago; next to nothing otherwise."""
        if self._clock() >= self._next:
            self._next = self._clock() + (LIVE_INTERVAL if self.is_live else LINE_INTERVAL)
            now = self._statistics()
            self._show(now, self._earlier[0] if self._earlier else None)
            self._earlier.append(now)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate a run, and update the view at each item."""
        for item in items:
            self.update()
            yield item

    def _show(self, now: RunStatistics, earlier: RunStatistics | None) -> None:
        if self._live is not None:
            self._live.update(GraphView(now, earlier), refresh=True)
        else:
            self._report(status_line(now, earlier))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The whole run stays on the screen. A terminal that is gone must not hide the error that is on its way.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            try:
                self._show(self._statistics(), None)
            finally:
                if self._live is not None:
                    self._live.stop()


def _line(*parts: tuple[str, str], wrap: bool = False) -> "Text":
    from rich.text import Text

    line = Text(no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for text, style in parts:
        line.append(text, style or None)
    return line


def _name(stage: StageStatistics) -> str:
    name = plain(stage.name)
    name = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    return f"{name} x{stage.workers}" if stage.workers > 1 else name


def _queue(stage: StageStatistics, ascii_only: bool) -> str:
    if stage.channel is None:
        return ""
    depth, capacity = stage.channel.depth, stage.channel.capacity
    cells = min(GAUGE, capacity)
    full = min(cells, math.ceil(cells * depth / capacity))
    mark, room = ("#", "-") if ascii_only else ("▮", "▯")
    return f"{mark * full}{room * (cells - full)} {depth}/{capacity}"


def _full(stage: StageStatistics) -> bool:
    return stage.channel is not None and stage.channel.depth >= stage.channel.capacity
