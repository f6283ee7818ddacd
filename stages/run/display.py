"""What a person sees while a model trains: a live picture on a terminal, a line every few seconds elsewhere.

The picture is a pure function of `Progress`, so that tests draw it without a run. No thread is started: whoever has
news calls `Display.update`, which draws at most four times a second. Drawing holds the GIL (kernels go on, they hold
none), so it must stay cheap: about a millisecond.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from loguru import logger
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

LIVE_INTERVAL = 0.25
"""Seconds between two drawings of the live picture."""
LINE_INTERVAL = 5.0
"""Seconds between two lines where the output is no terminal."""


@dataclass(frozen=True)
class StageShares:
    """What the threads of one stage did with their time lately. The shares are of 1 and averages over its workers."""

    name: str
    workers: int  # threads
    busy: float  # at work
    waiting: float  # for input: the stages before it are slower
    blocked: float  # on output: the stages behind it are slower (back-pressure)


@dataclass(frozen=True)
class ChannelDepth:
    """How full one channel is: always full points at the stage behind it, always empty at the one before."""

    name: str
    depth: int  # items in it now
    capacity: int  # items that it holds at most


@dataclass(frozen=True)
class Progress:
    """Where the training stands."""

    step: int  # updates done
    steps: int  # updates in all
    loss: float  # of the last update, nats a token
    smoothed_loss: float  # see Smoothing
    lr: float  # of the last update
    grad_norm: float  # global, before clipping
    tokens_per_s: float  # lately
    eta_s: float | None  # seconds until the last update; None while it cannot be told
    val_loss: float | None = None  # of the last evaluation, nats a token; None before the first
    loss_scale: float | None = None  # of the next update; None where losses are not scaled
    skipped: int = 0  # updates left out in all, since they were not finite
    stages: Sequence[StageShares] = ()
    channels: Sequence[ChannelDepth] = ()


class Smoothing:
    """An exponential mean whose first values are not pulled towards zero (Adam's bias correction)."""

    def __init__(self, window: float = 50.0) -> None:
        """`window` is how many values the mean looks back on."""
        self._decay = 1.0 - 1.0 / max(1.0, window)
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> float:
        """Take in one value and return the mean. One that is not finite is passed through and does not stay."""
        if not math.isfinite(value):
            return value
        self._sum = self._decay * self._sum + (1.0 - self._decay) * value
        self._weight = self._decay * self._weight + (1.0 - self._decay)
        return self._sum / self._weight


def bottleneck(stages: Sequence[StageShares]) -> str | None:
    """Return the stage that sets the pace, the busiest one, or None while none is busy for half of its time."""
    busiest = max(stages, key=lambda stage: stage.busy, default=None)
    return busiest.name if busiest is not None and busiest.busy >= 0.5 else None


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them: 0:07, 12:34, 1:02:03."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def scale_text(scale: float) -> str:
    """Return a loss scale as a person reads it: 16,777,216 or 0.125."""
    return f"{scale:,.0f}" if scale == round(scale) else f"{scale:g}"


def _figure(number: float, places: int) -> str:
    """A number with its decimals, or in short where it has run away."""
    return f"{number:.{places}f}" if abs(number) < 1e5 else f"{number:.3e}"


def progress_line(progress: Progress) -> str:
    """Return the state in one line of plain text, for logs."""
    parts = [
        f"step {progress.step:,}/{progress.steps:,}",
        f"mean loss {_figure(progress.smoothed_loss, 4)}",  # of the last updates: in a short run far from the last one
        f"lr {progress.lr:.2e}",
        f"grad norm {_figure(progress.grad_norm, 3)}",
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"ETA {duration(progress.eta_s)}",
    ]
    if progress.val_loss is not None:
        parts.insert(2, f"val loss {_figure(progress.val_loss, 4)}")
    if progress.loss_scale is not None:
        parts.append(f"loss scale {_scale(progress)}")
    slowest = bottleneck(progress.stages)
    parts += [f"{slowest} {stage.busy:.0%} busy" for stage in progress.stages if stage.name == slowest]
    return ", ".join(parts)


def _scale(progress: Progress) -> str:
    """The loss scale and how often it was too high: 1,024 (3 skipped)."""
    assert progress.loss_scale is not None
    return scale_text(progress.loss_scale) + (f" ({progress.skipped:,} skipped)" if progress.skipped else "")


class ProgressView:
    """The live picture, as wide as the console lets it be."""

    def __init__(self, progress: Progress, title: str = "training") -> None:
        self._progress = progress
        self._title = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the lines out; each is one Text, which is far cheaper than rich's tables."""
        width, ascii_only = min(options.max_width, 110), options.ascii_only
        yield self._head(width, ascii_only)
        yield self._numbers(width)
        if self._progress.stages:
            yield Text()
            yield from self._stages(width, ascii_only)
        if self._progress.channels:
            yield self._channels(width)

    def _head(self, width: int, ascii_only: bool) -> Text:
        progress = self._progress
        done = min(1.0, progress.step / progress.steps) if progress.steps > 0 else 1.0
        title = f"{self._title}  "
        count = f"  {progress.step:,}/{progress.steps:,} {done:4.0%}  ETA {duration(progress.eta_s)}"
        room = max(5, width - len(title) - len(count))
        full = int(done * room)
        mark = "#" if ascii_only else "━"
        return _line(
            (title, "bold"),
            (mark * full, "bold cyan"),
            (("-" if ascii_only else mark) * (room - full), "bright_black"),
            (count, ""),
        )

    def _numbers(self, width: int) -> Text:
        progress = self._progress
        groups = [
            [
                ("loss ", "dim"),
                (_figure(progress.smoothed_loss, 4), "bold"),
                (f" (last {_figure(progress.loss, 4)})", "dim"),
            ],
            [("grad norm ", "dim"), (_figure(progress.grad_norm, 3), "")],
            [("lr ", "dim"), (f"{progress.lr:.2e}", "")],
            [(f"{progress.tokens_per_s:,.0f}", "bold"), (" tokens/s", "dim")],
        ]
        if progress.val_loss is not None:
            groups.insert(1, [("val loss ", "dim"), (f"{progress.val_loss:.4f}", "bold green")])
        if progress.loss_scale is not None:
            groups.append([("loss scale ", "dim"), (_scale(progress), "yellow" if progress.skipped else "")])
        line, used = _line(), 0
        for group in groups:
            length = sum(len(text) for text, _ in group)
            if used and used + 3 + length > width:
                line.append("\n")
                used = 0
            elif used:
                line.append("   ")
                used += 3
            for text, style in group:
                line.append(text, style)
            used += length
        return line

    def _stages(self, width: int, ascii_only: bool) -> list[Text]:
        stages = self._progress.stages
        names = [f"{stage.name} x{stage.workers}" if stage.workers > 1 else stage.name for stage in stages]
        wide = max(len(name) for name in names)
        bar = max(4, min(50, width - wide - 22))  # beside it: the share and the bottleneck's mark
        busy, waiting, blocked = ("#", ".", "!") if ascii_only else ("█", "░", "▒")
        lines = [
            _line(
                (" " * (wide + 2), ""),
                (f"{busy} busy", "green"),
                (f"  {blocked} blocked" + (" on output" if width >= wide + 50 else ""), "yellow"),
                (f"  {waiting} waiting" + (" for input" if width >= wide + 50 else ""), "bright_black"),
            )
        ]
        slowest = bottleneck(stages)
        for name, stage in zip(names, stages, strict=True):
            first, second = _cells(stage, bar)
            lines.append(
                _line(
                    (f"{name:<{wide}}  ", "bold" if stage.name == slowest else ""),
                    (busy * first, "green"),
                    (blocked * second, "yellow"),
                    (waiting * (bar - first - second), "bright_black"),
                    (f" {stage.busy:4.0%}", "bold" if stage.name == slowest else ""),
                    ("  sets the pace" if stage.name == slowest else "", "bold green"),
                )
            )
        return lines

    def _channels(self, width: int) -> Text:
        line = _line(("channels", "dim"))
        used = len("channels")
        for channel in self._progress.channels:
            text = f"  {channel.name} {channel.depth}/{channel.capacity}"
            if used + len(text) > width:
                line.append("\n" + " " * len("channels"))
                used = len("channels")
            line.append(text, "yellow" if channel.depth >= channel.capacity else "dim")
            used += len(text)
        return line


def _line(*parts: tuple[str, str]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for text, style in parts:
        line.append(text, style or None)
    return line


def _cells(stage: StageShares, width: int) -> tuple[int, int]:
    """How many of `width` cells are busy and how many blocked; the rest is waiting. Shares above 1 are cut."""
    busy = min(1.0, max(0.0, stage.busy))
    blocked = min(1.0 - busy, max(0.0, stage.blocked))
    first = round(busy * width)
    return first, round((busy + blocked) * width) - first


class Display:
    """Shows progress while its block runs. Owned by one thread: the one that calls `update`."""

    def __init__(
        self,
        title: str = "training",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[str], None] = logger.info,
    ) -> None:
        """`report` takes the lines where `console` is no terminal; `clock` is in seconds."""
        self._title = title
        self._console = console or Console()
        self._clock = clock
        self._report = report
        self._next = -math.inf
        self._last: Progress | None = None
        self._shown: Progress | None = None
        self._live: Live | None = None
        if self.is_live:
            # Lines of a log that come meanwhile appear above: Live puts itself in the place of stdout and stderr.
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def due(self) -> bool:
        """Whether an update would be shown now; ask before you gather what it needs."""
        return self._clock() >= self._next

    def update(self, progress: Progress) -> None:
        """Show the state if the last drawing is long enough ago; what is left out is shown at the end."""
        self._last = progress
        if self.due():
            self._next = self._clock() + (LIVE_INTERVAL if self.is_live else LINE_INTERVAL)
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        self._shown = progress
        if self._live is not None:
            self._live.update(ProgressView(progress, self._title), refresh=True)
        else:
            self._report(progress_line(progress))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # The last state stays on the screen. A terminal that is gone must not hide the error that is on its way.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            if self._last is not None and self._last is not self._shown:
                self._show(self._last)
            if self._live is not None:
                self._live.stop()
