"""The progress of a run: a bar on a terminal, and plain lines elsewhere.

    for line in graph.start(progress=True): ...

The number of items is that of the last node of the graph; with several ends, of the end with the least progress. The
total is an estimate, see `expectation`; if it is unknown, the bar moves without an end. The bar is written to stderr,
like those of other tools, so that a pipe gets the program's output alone.

rich is imported on first use.
"""

import contextlib
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from threadloom.pipeline.observe.formatting import format_clock, format_rate, single_line
from threadloom.pipeline.observe.redrawing import is_redrawable
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import RunStatistics, StageStatistics

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

BAR_INTERVAL, LINE_INTERVAL = 0.25, 5.0
"""Seconds between two drawings of the bar, and between two lines."""
WINDOW = 40
"""Number of drawings over which the rate is computed: ten seconds of a bar."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    done: int
    """Items that the end of the graph has processed."""
    total: int | None
    """Estimated number of items at the end of the run; None if it is unknown."""
    skipped: int
    """Items skipped by failure policies, in all stages."""


def progress_of(statistics: RunStatistics) -> Progress:
    """Return the progress of a run: that of its end with the least progress, ends with a known total first."""
    followed = {name for stage in statistics.stages for name in stage.after}
    ends = [(_processed(stage), stage.expected) for stage in statistics.stages if stage.name not in followed]
    done, total = min(ends, key=lambda end: end[0] / end[1] if end[1] else 2.0, default=(0, None))
    skipped = sum(stage.skipped for stage in statistics.stages)
    return Progress(done, None if total is None else max(done, total), skipped)


def _processed(stage: StageStatistics) -> int:
    if stage.kind is not NodeKind.STAGE:
        return stage.items_out
    return min(stage.items_in, stage.tasks.count)  # an expansion counts its elements as tasks


class ProgressBar:
    """An observer that shows the progress of a run; `start(progress=True)` is short for `observers=[ProgressBar()]`.

    It ends, and the run continues, if the terminal or the file that it writes to is closed or full.
    """

    def __init__(self, console: "Console | None" = None, report: Callable[[str], None] | None = None) -> None:
        """`console` is stderr by default. `report` receives the lines if it is not a terminal."""
        from rich.console import Console

        self._console = console or Console(stderr=True)
        self._report = report or self._print
        self._statistics: Callable[[], RunStatistics] | None = None  # of the current run, set between begin and end
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # (elapsed seconds, done) of the last drawings
        self._bar: Bar | None = None
        self._name = ""

    @property
    def is_live(self) -> bool:
        """True if a bar is drawn."""
        return is_redrawable(self._console)

    @property
    def interval(self) -> float:
        """Seconds between two drawings."""
        return BAR_INTERVAL if self.is_live else LINE_INTERVAL

    def begin(self, statistics: Callable[[], RunStatistics]) -> None:
        """Start to show the progress of a run."""
        if self._statistics is not None:
            raise ValueError("a ProgressBar shows one run at a time: create one for each run")
        self._statistics = statistics
        self._recent.clear()
        self._recent.append((0.0, 0))
        self._name = single_line(statistics().graph)
        if self.is_live:
            self._bar = self._new_bar()  # before it hides the cursor, which `end` has to show again
            with contextlib.suppress(OSError):
                self._bar.start()

    def _new_bar(self) -> "Bar":
        from rich.progress import BarColumn, Progress as Bar, TextColumn

        texts = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[text]}", markup=False))
        # Lines printed meanwhile appear above the bar, unless they go to a file: they must not be diverted from it.
        outputs = {name: stream.isatty() for name in ("stdout", "stderr") if (stream := getattr(sys, name)) is not None}
        bar = Bar(
            texts[0], BarColumn(), texts[1], console=self._console, auto_refresh=False,
            redirect_stdout=outputs.get("stdout", False), redirect_stderr=outputs.get("stderr", False),
        )  # fmt: skip
        bar.add_task(self._name, total=None, text="")
        return bar

    def update(self) -> None:
        """Draw the current progress."""
        if self._statistics is not None:
            self._draw(self._statistics(), final=False, complete=False)

    def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
        """Draw the final progress, and release the terminal."""
        self._statistics = None
        try:
            self._draw(statistics(), final=True, complete=complete)
        finally:
            bar, self._bar = self._bar, None
            if bar is not None:
                with contextlib.suppress(OSError):
                    bar.stop()

    def _draw(self, now: RunStatistics, *, final: bool, complete: bool) -> None:
        progress = progress_of(now)
        if complete:
            progress = Progress(progress.done, progress.done, progress.skipped)
        self._recent.append((now.elapsed, progress.done))
        begin, before = (0.0, 0) if final else self._recent[0]
        rate = (progress.done - before) / (now.elapsed - begin) if now.elapsed > begin else 0.0
        text = progress_text(progress, now.elapsed, rate, final=final)
        text = f"{text}, stopped" if final and not complete else text
        with contextlib.suppress(OSError):  # the terminal is closed, or the disk full: the run matters more
            if self._bar is None:
                self._report(f"{self._name}: {text}")
            else:
                total = None if progress.total is None else max(progress.total, 1)
                done = total if complete and total is not None else progress.done
                self._bar.update(self._bar.task_ids[0], completed=done, total=total, text=text, refresh=True)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_text(progress: Progress, elapsed: float, rate: float, *, final: bool) -> str:
    """Return the progress as text: 120 of 1,000 (12%), 34.2/s, 0:26 left. `rate` is in items per second.

    The time is that until the end; the elapsed time if it is unknown, and in the `final` text.
    """
    count = f"{progress.done:,}"
    if progress.total is not None:
        count += f" of {progress.total:,}"
        if not final and progress.total:
            count += f" ({int(100 * progress.done / progress.total)}%)"
    left = None if progress.total is None or rate <= 0 or final else (progress.total - progress.done) / rate
    parts = [count, format_rate(rate, 1.0)]
    if progress.skipped:
        parts.append(f"{progress.skipped:,} skipped")
    parts.append(format_clock(int(elapsed)) if left is None else f"{format_clock(left)} left")
    return ", ".join(parts)
