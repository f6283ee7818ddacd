"""The display of a training: a live view on a terminal, a line every few seconds elsewhere.

The view is a pure function of `TrainingProgress`, so that tests draw it without a run. No thread is started:
`Display.update` draws in the caller's thread, at most four times per second. Drawing holds the GIL, which kernels
release, and takes about a millisecond.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from loguru import logger
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from threadloom.pipeline import find_bottleneck, format_clock, is_redrawable
from threadloom.stages.config import printable

LIVE_INTERVAL = 0.25
"""Seconds between two drawings of the live view."""
LINE_INTERVAL = 5.0
"""Seconds between two lines if the output is not a terminal."""
_MOST_EPOCHS = 6
"""Sources whose epochs are shown at most."""


@dataclass(frozen=True)
class StageShares:
    """The shares of time of one stage since the last display, averaged over its workers; they add up to 1."""

    name: str
    workers: int  # threads
    busy: float  # inside the stage's function
    waiting: float  # for input: an upstream stage is slower
    blocked: float  # on output: a downstream stage is slower (back-pressure)


@dataclass(frozen=True)
class ChannelDepth:
    """The items in one channel: always full means a slow downstream stage, always empty a slow upstream one."""

    name: str
    depth: int  # items now
    capacity: int  # maximum number of items


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training."""

    step: int  # updates done
    steps: int  # updates in total
    loss: float | None  # of the last update, nats per token; None if no token counts
    smoothed_loss: float | None  # see Smoothing; None before the first loss
    lr: float  # of the last update
    grad_norm: float  # global, before clipping
    tokens_per_s: float  # over the last updates
    eta_s: float | None  # seconds until the last update; None if unknown
    val_loss: float | None = None  # of the last evaluation, nats per token; None before the first
    ema_loss: float | None = None  # the same of the average of the weights; None without one
    set_losses: Mapping[str, float] = field(default_factory=dict)  # the same on the named validation sets
    loss_scale: float | None = None  # of the next update; None if losses are not scaled
    skipped: int = 0  # updates skipped so far because they were not finite
    noise_scale: float | None = None  # of the gradient, over the last updates, in sequences; None if unknown
    epochs: Sequence[float] = ()  # done, of each source; none if sequences are drawn at random
    epoch_updates: float | None = None  # updates of an epoch; None without epochs, or of several sources
    padding: float | None = None  # fraction of the rows; None without packed documents
    stages: Sequence[StageShares] = ()
    channels: Sequence[ChannelDepth] = ()


class Smoothing:
    """An exponential moving average without a bias towards zero at the start (Adam's bias correction)."""

    def __init__(self, window: float = 50.0) -> None:
        """`window` is the number of values that the average covers."""
        self._decay = 1.0 - 1.0 / max(1.0, window)
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> float:
        """Add a value and return the average. A value that is not finite is returned and not added."""
        if not math.isfinite(value):
            return value
        self._sum = self._decay * self._sum + (1.0 - self._decay) * value
        self._weight = self._decay * self._weight + (1.0 - self._decay)
        return self._sum / self._weight


def bottleneck(stages: Sequence[StageShares]) -> str | None:
    """Return the busiest stage, or None if none is busy for half of its time."""
    return find_bottleneck({stage.name: stage.busy for stage in stages}, least=0.5)


def format_scale(scale: float) -> str:
    """Return a loss scale as text: 16,777,216 or 0.125."""
    return f"{scale:,.0f}" if scale == round(scale) else f"{scale:g}"


def _format_loss(loss: float | None) -> str:
    return "none" if loss is None else _format_number(loss, 4)


def _format_number(number: float, places: int) -> str:
    """Return a number with `places` decimals, or in scientific notation if it is large."""
    return f"{number:.{places}f}" if abs(number) < 1e5 else f"{number:.3e}"


def progress_line(progress: TrainingProgress) -> str:
    """Return the state as one line of plain text, for logs."""
    parts = [
        f"step {progress.step:,}/{progress.steps:,}",
        f"mean loss {_format_loss(progress.smoothed_loss)}",  # an average
        f"lr {progress.lr:.2e}",
        f"grad norm {_format_number(progress.grad_norm, 3)}",
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"ETA {format_clock(progress.eta_s)}",
    ]
    if progress.val_loss is not None:
        parts.insert(2, f"val loss {_format_number(progress.val_loss, 4)}")
    parts[3:3] = [f"{name} {_format_number(loss, 4)}" for name, loss in _further_losses(progress).items()]
    if progress.loss_scale is not None:
        parts.append(f"loss scale {_scale(progress)}")
    parts += [f"{name} {value}" for name, value in _data_figures(progress).items()]
    slowest = bottleneck(progress.stages)
    parts += [f"{slowest} {stage.busy:.0%} busy" for stage in progress.stages if stage.name == slowest]
    return ", ".join(parts)


def _further_losses(progress: TrainingProgress) -> dict[str, float]:
    """Return the losses of the last evaluation beside that of the weights on the validation split, by name."""
    average = {} if progress.ema_loss is None else {"average": progress.ema_loss}
    return average | dict(progress.set_losses)


def _data_figures(progress: TrainingProgress) -> dict[str, str]:
    """Return the figures of noise, epochs and padding that a run has, as text by name."""
    found = dict[str, str]()
    if progress.noise_scale is not None:
        found["noise scale"] = format_count(progress.noise_scale)
    if progress.epochs:
        done = ", ".join(f"{epochs:.2f}" for epochs in progress.epochs[:_MOST_EPOCHS])
        found["epochs" if len(progress.epochs) > 1 else "epoch"] = done + ", ..." * (
            len(progress.epochs) > _MOST_EPOCHS
        )
    if progress.epoch_updates is not None:
        found["epoch"] += f" (of {format_count(progress.epoch_updates)} updates)"
    if progress.padding is not None:
        found["padding"] = f"{progress.padding:.1%}"
    return found


def format_count(count: float) -> str:
    """Return a number that need not be whole, such as one of updates, as text: 3.25 or 1,024."""
    return f"{count:,.0f}" if abs(count) >= 100 else f"{count:.3g}"


def _scale(progress: TrainingProgress) -> str:
    """Return the loss scale and the number of skipped updates: 1,024 (3 skipped)."""
    assert progress.loss_scale is not None
    return format_scale(progress.loss_scale) + (f" ({progress.skipped:,} skipped)" if progress.skipped else "")


class ProgressView:
    """The live view, as wide as the console."""

    def __init__(self, progress: TrainingProgress, title: str = "training") -> None:
        self._progress = progress
        self._title = printable(title)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the lines. Each is one Text, which is much cheaper than a rich table."""
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
        count = f"  {progress.step:,}/{progress.steps:,} {done:4.0%}  ETA {format_clock(progress.eta_s)}"
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
                (_format_loss(progress.smoothed_loss), "bold"),
                (f" (last {_format_loss(progress.loss)})", "dim"),
            ],
            [("grad norm ", "dim"), (_format_number(progress.grad_norm, 3), "")],
            [("lr ", "dim"), (f"{progress.lr:.2e}", "")],
            [(f"{progress.tokens_per_s:,.0f}", "bold"), (" tokens/s", "dim")],
        ]
        if progress.val_loss is not None:
            groups.insert(1, [("val loss ", "dim"), (f"{progress.val_loss:.4f}", "bold green")])
        groups[2:2] = [
            [(f"{name} ", "dim"), (f"{loss:.4f}", "green")] for name, loss in _further_losses(progress).items()
        ]
        if progress.loss_scale is not None:
            groups.append([("loss scale ", "dim"), (_scale(progress), "yellow" if progress.skipped else "")])
        groups += [[(f"{name} ", "dim"), (value, "")] for name, value in _data_figures(progress).items()]
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
        bar = max(4, min(50, width - wide - 22))  # leaves space for the share and the mark of the bottleneck
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
                    ("  bottleneck" if stage.name == slowest else "", "bold green"),
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
    """Return the numbers of busy and blocked cells among `width`; the rest is waiting. Shares are clipped to 0 to 1."""
    busy = min(1.0, max(0.0, stage.busy))
    blocked = min(1.0 - busy, max(0.0, stage.blocked))
    first = round(busy * width)
    return first, round((busy + blocked) * width) - first


class Display:
    """Shows progress within a `with` block. Owned by one thread, which calls `update`.

    It ends, and the training continues, if the terminal is closed.
    """

    def __init__(
        self,
        title: str = "training",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[str], None] = logger.info,
    ) -> None:
        """`report` receives the lines if `console` is not a terminal; `clock` returns seconds."""
        self._title = printable(title)
        self._console = console or Console()
        self._clock = clock
        self._report = report
        self._next = -math.inf
        self._last: TrainingProgress | None = None
        self._shown: TrainingProgress | None = None
        self._live: Live | None = None
        if self.is_live:
            # Log lines appear above the view, because Live replaces stdout and stderr.
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    @property
    def is_live(self) -> bool:
        """True if the output is a terminal that can be drawn on."""
        return is_redrawable(self._console)

    def due(self) -> bool:
        """Return True if an update would be shown now. Check it before collecting statistics for one."""
        return self._clock() >= self._next

    def update(self, progress: TrainingProgress) -> None:
        """Show the state if the last drawing is long enough ago. The last state is shown when the block ends."""
        self._last = progress
        if self.due():
            self._next = self._clock() + (LIVE_INTERVAL if self.is_live else LINE_INTERVAL)
            self._show(progress)

    def _show(self, progress: TrainingProgress) -> None:
        self._shown = progress
        try:
            if self._live is not None:
                self._live.update(ProgressView(progress, self._title), refresh=True)
            else:
                self._report(progress_line(progress))
        except OSError:
            self._next = math.inf

    def __enter__(self) -> Self:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._last is not None and self._last is not self._shown and self._next < math.inf:
            self._show(self._last)  # stays on the screen
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
