"""Reports of a run: each event is written to the metrics file and shown on the display, in the caller's thread."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from loguru import logger

from threadloom.pipeline import MonotonicCounter, RunStatistics
from threadloom.stages.config import Config
from threadloom.stages.data import SequenceFigures
from threadloom.stages.memory import Evaluation, Event, Saved, Scaled, Update
from threadloom.stages.run.display import ChannelDepth, Display, Smoothing, StageShares, TrainingProgress, format_scale
from threadloom.stages.storage import MetricsLog

SHOWN = ("draw", "embed", "forward", "backward", "reduce", "update", "evaluate", "save")
"""Stages that the display shows; the others are gather and scatter steps that take microseconds."""
RATE_WINDOW = 20
"""Number of updates over which tokens per second are averaged."""


class WrittenMetrics:
    """The progress of the metrics file. A checkpoint must not be on disk before the lines up to its step.

    A run resumed from a checkpoint writes the lines after it again, but never those before.
    """

    def __init__(self, config: Config, step: int, losses: Mapping[int, float] | None = None) -> None:
        """`step` is the number of updates before the run, whose lines are in the file; `losses` are in them."""
        self._losses = dict(losses or {})
        self._interval = config.evaluation.interval
        self._steps = config.steps
        self._updates = MonotonicCounter(step)
        self._evaluations = MonotonicCounter(step)

    def take(self, event: Event) -> None:
        """Record that the line of `event` has been written."""
        match event:
            case Update():
                self._updates.advance(event.step)
            case Evaluation():
                self.take_evaluation(event)

    def take_evaluation(self, event: Evaluation) -> None:
        """Record that the line of an evaluation has been written."""
        self._losses[event.step] = event.val_loss
        self._evaluations.advance(event.step)

    def losses(self) -> dict[int, float]:
        """Return the validation losses in the file, step → loss; may be called by any thread."""
        return dict(self._losses)

    def wait_for(self, step: int) -> None:
        """Wait until the lines of all updates up to `step` are written, and of all evaluations due by then."""
        self._updates.wait_for(step)
        self._evaluations.wait_for(self._last_due(step))

    def settle(self, seconds: float) -> None:
        """Wait for due evaluations for at most `seconds`; after that `wait_for` waits for none."""
        self._evaluations.wait_for(self._last_due(self._updates.reached), seconds)
        self._evaluations.advance(self._steps)

    def _last_due(self, step: int) -> int:
        """Return the step of the last evaluation that is due after `step` updates."""
        return step if step == self._steps else step - step % self._interval if self._interval else 0

    def abort(self) -> None:
        """Raise `Cancelled` in all waiters."""
        self._updates.abort()
        self._evaluations.abort()


class Reporter:
    """Writes one line of metrics per event, and updates the display. Owned by one thread."""

    def __init__(
        self, config: Config, log: MetricsLog, display: Display, began: float, figures: SequenceFigures
    ) -> None:
        """`began` is the start of the run on `time.perf_counter`; `figures` are those of the training sequences."""
        self._config = config
        self._log = log
        self._display = display
        self._began = began
        self._tokens = config.sequences * config.model.context
        self._times: deque[float] = deque([time.perf_counter()], maxlen=RATE_WINDOW + 1)
        self._figures = figures
        self._smoothing, self._noise, self._signal = Smoothing(), Smoothing(), Smoothing()
        self._noise_scale: float | None = None
        self._smoothed: float | None = None
        self._earlier: RunStatistics | None = None
        self._shown: TrainingProgress | None = None
        self.last_update: Update | None = None
        self.last_evaluation: Evaluation | None = None

    def take(self, event: Event, statistics: Callable[[], RunStatistics]) -> None:
        """Record one event; `statistics` is called only when the display is due."""
        match event:
            case Update():
                self._take_update(event, statistics)
            case Evaluation():
                self.take_evaluation(event)
            case Saved():
                self.take_saved(event)

    def take_saved(self, event: Saved) -> None:
        """Record a checkpoint."""
        self._log.sync()
        logger.info("step {}: checkpoint {} ({:.1f} s)", event.step, event.path, event.seconds)

    def take_evaluation(self, event: Evaluation) -> None:
        """Record an evaluation."""
        self.last_evaluation = event
        if self._shown:
            shown = replace(self._shown, val_loss=event.val_loss, ema_loss=event.ema_loss, set_losses=event.sets)
            self._display.update(shown)
        further = {"gcd_loss": event.gcd_loss, "ema_loss": event.ema_loss}
        found = {name: value for name, value in further.items() if value is not None}
        sets = {"sets": event.sets} if event.sets else {}
        self._log.append({"step": event.step, "val_loss": event.val_loss, "tokens": event.tokens, **found, **sets})
        average = "" if event.ema_loss is None else f", of the average {event.ema_loss:.4f}"
        average += "".join(f", {name} {loss:.4f}" for name, loss in event.sets.items())
        logger.info("step {}: validation loss {:.4f}{} ({:.1f} s)", event.step, event.val_loss, average, event.seconds)

    def _take_update(self, update: Update, statistics: Callable[[], RunStatistics]) -> None:
        now = time.perf_counter()
        self._times.append(now)
        rate = (len(self._times) - 1) * self._tokens / max(now - self._times[0], 1e-9)
        self._log.append(
            {
                "step": update.step,
                "loss": update.loss,
                "lr": update.lr,
                "grad_norm": update.grad_norm,
                "tokens_per_s": round(rate, 1),
                "seconds": round(now - self._began, 4),
                **({} if update.counted == self._tokens else {"counted": update.counted}),
                **({f"loss_{name}": value for name, value in update.terms._asdict().items()} if update.terms else {}),
                **({"loss_scale": update.scaled.scale, "skipped": update.scaled.skipped} if update.scaled else {}),
                **_noise(update),
                **({"skipped": True, "spike": update.spike} if update.spike else {}),
            }
        )
        if update.spike:
            logger.warning("step {}: update skipped as a spike: {}", update.step, update.spike)
        elif update.scaled and update.scaled.skipped:
            logger.warning("{}", skip_line(update.step, update.scaled))
        if update.loss is not None:
            self._smoothed = self._smoothing.add(update.loss)
        if update.noise is not None:  # each by itself: the quotients have no mean
            noise, signal = self._noise.add(update.noise.noise), self._signal.add(update.noise.signal)
            self._noise_scale = noise / signal if signal > 0 else None
        self.last_update = update
        if self._display.due() or update.step == self._config.steps:
            self._shown = self._progress(update, rate, statistics())
            self._display.update(self._shown)

    def _progress(self, update: Update, rate: float, statistics: RunStatistics) -> TrainingProgress:
        left = (self._config.steps - update.step) * self._tokens
        shares = [_shares(name, statistics, self._earlier) for name in SHOWN if name in statistics]
        channels = [
            ChannelDepth(stage.name, stage.channel.depth, stage.channel.capacity)
            for stage in statistics.values()
            if stage.channel and stage.name in SHOWN
        ]
        self._earlier = statistics
        evaluated, per_update, epochs = self.last_evaluation, self._config.sequences, self._figures.epochs
        return TrainingProgress(
            step=update.step,
            steps=self._config.steps,
            loss=update.loss,
            smoothed_loss=self._smoothed,
            lr=update.lr,
            grad_norm=update.grad_norm,
            tokens_per_s=rate,
            eta_s=left / rate if rate else None,
            val_loss=evaluated.val_loss if evaluated else None,
            ema_loss=evaluated.ema_loss if evaluated else None,
            set_losses=evaluated.sets if evaluated else {},
            loss_scale=update.scaled.after.scale if update.scaled else None,
            skipped=update.scaled.after.skipped if update.scaled else 0,
            noise_scale=self._noise_scale,
            epochs=self._figures.epochs_after(update.step * per_update),
            epoch_updates=epochs[0] / per_update if len(epochs) == 1 else None,
            padding=self._figures.padding,
            stages=shares,
            channels=channels,
        )


def _noise(update: Update) -> dict[str, float | None]:
    if update.noise is None:
        return {}
    return {"noise": update.noise.noise, "signal": update.noise.signal, "noise_scale": update.noise.scale}


def skip_line(step: int, scaled: Scaled) -> str:
    """Return the warning about a skipped update."""
    change = "unchanged" if scaled.after.scale == scaled.scale else f"now {format_scale(scaled.after.scale)}"
    return (
        f"step {step}: update skipped, its loss or gradient is not finite at a loss scale of "
        f"{format_scale(scaled.scale)} ({change}); {scaled.after.skipped:,} skipped in total"
    )


def _shares(name: str, now: RunStatistics, earlier: RunStatistics | None) -> StageShares:
    """Return how the workers of a stage spent the time since `earlier`, or since the start."""
    stage, before = now[name], earlier[name] if earlier else None
    spent = [
        getattr(stage, phase) - (getattr(before, phase) if before else 0.0) for phase in ("busy", "waiting", "blocked")
    ]
    total = sum(spent) or 1.0
    return StageShares(name, stage.workers, *(seconds / total for seconds in spent))
