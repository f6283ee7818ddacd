"""The loss plot of a run, drawn from its metrics file, or of several runs for comparison.

Plots are drawn on a Figure without pyplot: there is no window, and any thread may draw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import render_png
from threadloom.stages.run.display import format_count, format_scale
from threadloom.stages.run.plot_style import COLOURS, INK, LONGEST_TITLE, style_axes
from threadloom.stages.storage import atomic_write, read_metrics

if TYPE_CHECKING:  # Matplotlib takes 60 MB and is imported by the functions that draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """The content of a metrics file, by step. Losses are in nats per token; a loss that was not finite is nan."""

    steps: Series
    loss: Series
    lr: Series
    val_steps: Series
    val_loss: Series
    average: Series
    """The validation loss of the average of the weights, at `val_steps`; all nan without one."""
    sets: Mapping[str, Series]
    """The losses on the named validation sets, at `val_steps`."""
    noise: Series
    """The noise of the gradient of each update, tr Σ; all nan if it is not measured."""
    signal: Series
    """The square of the gradient without noise, |G|²."""
    scale: Series
    """The loss scale of each update; all nan if losses are not scaled."""
    skipped: NDArray[np.bool_]
    """True for skipped updates."""

    @property
    def scaled(self) -> bool:
        """True if any loss was scaled."""
        return bool(np.isfinite(self.scale).any())

    @property
    def noisy(self) -> bool:
        """True if the noise of the gradient was measured."""
        return bool(np.isfinite(self.noise).any())

    def noise_scale(self) -> Series:
        """Return the gradient noise scale in sequences: the quotient of two averages, each over many updates."""
        window = max(20, len(self.steps) // 10)
        noise, signal = smoothed(self.noise, window), smoothed(self.signal, window)
        scale: Series = np.divide(noise, signal, out=np.full(len(noise), math.nan), where=(signal > 0) & (noise > 0))
        return scale

    @classmethod
    def read(cls, metrics: Path) -> "Curves":
        """Read a metrics file, which may still be written to."""
        return cls.of(read_metrics(metrics))

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Curves":
        """Return the curves of records: those with `loss` are updates, those with `val_loss` evaluations."""
        updates = [record for record in records if "loss" in record]
        evaluations = [record for record in records if "val_loss" in record]
        names = dict.fromkeys(name for record in evaluations for name in record.get("sets", {}))
        return cls(
            sets={name: _column([record.get("sets", {}) for record in evaluations], name) for name in names},
            steps=_column(updates, "step"),
            loss=_column(updates, "loss"),
            lr=_column(updates, "lr"),
            val_steps=_column(evaluations, "step"),
            val_loss=_column(evaluations, "val_loss"),
            average=_column(evaluations, "ema_loss"),
            noise=_column(updates, "noise"),
            signal=_column(updates, "signal"),
            scale=_column(updates, "loss_scale"),
            skipped=np.array([record.get("skipped") is True for record in updates], dtype=np.bool_),
        )


def _column(records: Sequence[Mapping[str, Any]], key: str) -> Series:
    values = (record.get(key) for record in records)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def smoothed(values: Series, window: int) -> Series:
    """Return the centred moving average over `window` values, fewer at the ends; nan is ignored."""
    if not len(values):
        return values
    half = max(0, min(window, len(values)) // 2)
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), math.nan)


def plot_loss(metrics: Path, out: Path, title: str = "") -> None:
    """Plot one run: training loss, raw and smoothed, evaluations, and the learning rate below.

    If the run scales its losses, the loss scale and the skipped updates are plotted below that, and so is the gradient
    noise scale if it is measured.
    """
    plot_runs({"": metrics}, out, title)


def plot_runs(runs: Mapping[str, Path], out: Path, title: str = "") -> None:
    """Plot several runs together. `runs` maps labels (τ = 1) to metrics files; `out` is written atomically."""
    curves = {label: Curves.read(metrics) for label, metrics in runs.items()}
    atomic_write(out, render_png(partial(loss_figure, curves, title)))


def loss_figure(runs: Mapping[str, Curves], title: str = "") -> "Figure":
    """Return the plot of labelled runs as a Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    further = [_draw_scales] * any(run.scaled for run in runs.values())
    further += [_draw_noise] * any(run.noisy for run in runs.values())
    heights = [4.2, 1.0] + [1.0] * len(further)
    figure = Figure(figsize=(9.0, 0.2 + 5.4 * sum(heights) / 5.2), dpi=130, facecolor="white", layout="constrained")
    parts: list[Axes] = list(figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}))
    top, bottom = parts[:2]
    for index, (label, run) in enumerate(runs.items()):
        _draw_run(top, run, label, COLOURS[index % len(COLOURS)], alone=len(runs) == 1)
    _draw_rates(bottom, runs)
    for draw, axes in zip(further, parts[2:], strict=True):
        draw(axes, runs)
    for axes in parts:
        style_axes(axes)
    _frame_losses(top, runs)
    top.set_ylabel("loss (nats per token)")
    if top.get_legend_handles_labels()[0]:
        top.legend(frameon=False, labelcolor=INK, loc="upper right")
    bottom.set_ylabel("learning\nrate")
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(FuncFormatter(_format_rate))
    bottom.set_ylim(bottom=0.0)
    parts[-1].set_xlabel("update")
    parts[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        top.set_title("solid: training, circles: validation", loc="right", color=INK, fontsize=9, pad=10)
    if title:
        top.set_title(title[:LONGEST_TITLE], loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    return figure


def _draw_run(axes: "Axes", run: Curves, label: str, colour: str, alone: bool) -> None:
    ended = f"validation {run.val_loss[-1]:.4f} at the end" if len(run.val_loss) else ""
    both = f"{label}: {ended}" if ended else label  # one legend entry per run
    window = max(1, len(run.steps) // 40)
    if len(run.steps):
        axes.plot(run.steps, run.loss, color=colour, alpha=0.22 if alone else 0.12, linewidth=0.8)
        axes.plot(
            run.steps,
            smoothed(run.loss, window),
            color=colour,
            linewidth=1.8,
            label="training" if alone else both,
        )
    if len(run.val_steps):
        axes.plot(
            run.val_steps,
            run.val_loss,
            color=COLOURS[1] if alone else colour,
            linewidth=1.0,
            linestyle=(0, (2, 2)),
            marker="o",
            markersize=5.5,
            markerfacecolor="white",
            markeredgewidth=1.6,
            label=ended if alone else None,
        )
    average = {"average of the weights": run.average} if np.isfinite(run.average).any() else {}
    for index, (name, losses) in enumerate((average | dict(run.sets)).items() if alone else (), 2):
        axes.plot(
            run.val_steps,
            losses,
            color=COLOURS[index % len(COLOURS)],
            linewidth=1.0,
            marker=".",
            label=f"{name} {losses[-1]:.4f} at the end",
        )


def _draw_rates(axes: "Axes", runs: Mapping[str, Curves]) -> None:
    """Plot the learning rates, as one line if all runs share the schedule."""
    shown = list(runs.values())
    shared = all(np.array_equal(run.lr, shown[0].lr, equal_nan=True) for run in shown)
    for index, run in enumerate(shown[:1] if shared else shown):
        axes.plot(run.steps, run.lr, color=INK if shared else COLOURS[index % len(COLOURS)], linewidth=1.4)


def _draw_scales(axes: "Axes", runs: Mapping[str, Curves]) -> None:
    """Plot the loss scale on a log2 axis, with a cross for each skipped update."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for index, run in enumerate(runs.values()):
        colour = INK if len(runs) == 1 else COLOURS[index % len(COLOURS)]
        axes.plot(run.steps, run.scale, color=colour, linewidth=1.4, drawstyle="steps-post")
        left_out = run.skipped & np.isfinite(run.scale)
        axes.plot(run.steps[left_out], run.scale[left_out], color=COLOURS[1], linestyle="", marker="x", markersize=5)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda scale, _: format_scale(scale)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("loss scale\n(x: skipped)")


def _draw_noise(axes: "Axes", runs: Mapping[str, Curves]) -> None:
    """Plot the gradient noise scale on a log axis, with labels within a decade too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for index, run in enumerate(runs.values()):
        colour = INK if len(runs) == 1 else COLOURS[index % len(COLOURS)]
        axes.plot(run.steps, run.noise_scale(), color=colour, linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda scale, _: format_count(scale)))
    axes.set_ylabel("noise scale\n(sequences)")


def _format_rate(value: float, _: int) -> str:
    """Return a learning rate as text: 6e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _frame_losses(axes: "Axes", runs: Mapping[str, Curves]) -> None:
    """Fit the axis to the smoothed curves and the evaluations, so that a single outlier does not flatten the plot."""
    parts = [smoothed(run.loss, max(1, len(run.steps) // 40)) for run in runs.values()]
    parts += [run.val_loss for run in runs.values()]
    if len(runs) == 1:
        parts += [losses for run in runs.values() for losses in (run.average, *run.sets.values())]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        axes.text(0.5, 0.5, "no updates yet", transform=axes.transAxes, ha="center", color=INK)
        return
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - 2 * margin, high + margin)
