"""A live view of a run on a terminal: rates, queues, shares of time, and the bottleneck.

    with graph.start() as run, LiveView(run.statistics) as view:
        for item in view.over(run):
            ...

The view is a pure function of frozen statistics (`GraphView`), so tests draw it without a run. It starts no thread: the
caller's thread draws in `update`, at most four times per second, which takes 1 to 2 ms. Without a terminal, one line
every few seconds shows the same figures.

rich is imported on first use.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from threadloom.pipeline.observe import (
    RunStatistics,
    StageStatistics,
    diagnose,
    format_clock,
    format_duration,
    format_rate,
    is_redrawable,
    single_line,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

Item = TypeVar("Item")

LIVE_INTERVAL = 0.25
"""Minimum time between two drawings, in seconds."""
LINE_INTERVAL = 5.0
"""Minimum time between two lines without a terminal, in seconds."""
WINDOW = 8
"""Number of drawings over which rates and shares are computed: two seconds."""
LONGEST = 28  # maximum length of a name
GAUGE = 6  # width of the gauge of a queue in characters


class GraphView:
    """A table of a run's statistics for rich, as wide as the console."""

    def __init__(self, statistics: RunStatistics, earlier: RunStatistics | None = None) -> None:
        """Show the interval from `earlier` to `statistics`; without `earlier`, from the start of the run."""
        self._now = statistics
        self._recent = statistics.since(earlier)
        self._diagnosis = diagnose(self._recent)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Yield one Text per line, which is far cheaper than a rich Table."""
        width, ascii_only = min(options.max_width, 130), options.ascii_only
        yield _line((single_line(self._now.graph), "bold"), (f"  {format_clock(int(self._now.elapsed))}", "dim"))
        yield from self._stages(width, ascii_only)
        yield _line((single_line(self._diagnosis.why), "bold"), wrap=True)
        if self._diagnosis.remedy:
            yield _line((f"{'->' if ascii_only else '→'} {single_line(self._diagnosis.remedy)}", ""), wrap=True)

    def _stages(self, width: int, ascii_only: bool) -> "Iterator[Text]":
        names = {stage.name: _name(stage) for stage in self._recent.stages}
        wide = max(map(len, names.values()), default=0)
        others = wide + 35  # width of the columns that are always shown
        times = width >= others + 17 + 20  # whether p50 and p99 fit
        bar = max(6, min(40, width - others - (17 if times else 0)))
        busy, blocked, waiting = ("#", "!", ".") if ascii_only else ("█", "▒", "░")
        legend = [(f"{busy} busy ", "green"), (f"{blocked} blocked ", "yellow"), (f"{waiting} waiting", "bright_black")]
        room = bar - sum(len(words) for words, _ in legend)
        yield _line(
            (" " * (wide + 2), ""),
            *(legend if room >= 0 else ()),
            (" " * (room if room >= 0 else bar), ""),
            (f"{'busy':>5}{'rate':>11}  {'input queue':<15}", "dim"),
            (f"{'p50':>8}{'p99':>9}" if times else "", "dim"),
        )
        for stage in self._recent.stages:
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
                (f"{format_rate(stage.items_out, self._recent.elapsed):>11}  ", strong),
                (f"{_queue(stage, ascii_only):<15}", "yellow" if _full(stage) else "dim"),
                (tasks if times else "", "dim"),
            )


def status_line(statistics: RunStatistics, earlier: RunStatistics | None = None) -> str:
    """Return the state of a run as one line of plain text, for logs."""
    recent = statistics.since(earlier)
    parts = []
    for stage in recent.stages:
        queue = f" {stage.channel.depth}/{stage.channel.capacity}" if stage.channel else ""
        rate = format_rate(stage.items_out, recent.elapsed)
        parts.append(f"{single_line(stage.name)}{queue} {rate} {stage.busy_share:.0%} busy")
    head = f"{single_line(statistics.graph)} {format_clock(int(statistics.elapsed))}"
    return f"{head}: {', '.join(parts)}; {single_line(diagnose(recent).why)}"


class LiveView:
    """A live view of a run within a `with` block. Owned by the thread that calls `update`.

    It ends, and the run continues, if the terminal or the file that it writes to is closed or full.
    """

    def __init__(
        self,
        statistics: Callable[[], RunStatistics],
        console: "Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """`statistics` is `run.statistics`. `report` receives the lines if `console` is not a terminal."""
        from rich.console import Console
        from rich.live import Live

        self._statistics = statistics
        self._console = console or Console()
        self._clock = clock
        self._report = report or self._print
        self._next = -math.inf
        # The statistics of recent drawings, oldest first; rates are computed from the oldest to the present.
        self._earlier: deque[RunStatistics] = deque(maxlen=WINDOW if self.is_live else 1)
        # Live redirects stdout and stderr, so printed lines appear above the view.
        self._live: Live | None = (
            Live(console=self._console, auto_refresh=False, vertical_overflow="crop") if self.is_live else None
        )

    @property
    def is_live(self) -> bool:
        """True if the view is drawn on a terminal."""
        return is_redrawable(self._console)

    def update(self) -> None:
        """Draw if the minimum time since the last drawing has passed. Cheap otherwise."""
        if self._clock() >= self._next:
            self._next = self._clock() + (LIVE_INTERVAL if self.is_live else LINE_INTERVAL)
            now = self._statistics()
            self._show(now, self._earlier[0] if self._earlier else None)
            self._earlier.append(now)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, and update the view before each."""
        for item in items:
            self.update()
            yield item

    def _show(self, now: RunStatistics, earlier: RunStatistics | None) -> None:
        try:
            if self._live is not None:
                self._live.update(GraphView(now, earlier), refresh=True)
            else:
                self._report(status_line(now, earlier))
        except OSError:  # the terminal is closed, or the disk full: the run matters more than its view
            self._next = math.inf

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._next < math.inf:
                self._show(self._statistics(), None)  # the final view covers the whole run
        finally:
            if self._live is not None:
                with contextlib.suppress(OSError):
                    self._live.stop()


def _line(*parts: tuple[str, str], wrap: bool = False) -> "Text":
    from rich.text import Text

    line = Text(no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for text, style in parts:
        line.append(text, style or None)
    return line


def _name(stage: StageStatistics) -> str:
    name = single_line(stage.name)
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
