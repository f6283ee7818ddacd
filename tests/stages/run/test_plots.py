"""The data of the plots; the image files are only checked to exist and to be complete."""

import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from threadloom.stages.run.plots import Curves, loss_figure, plot_loss, plot_runs, smoothed


def write_run(file: Path, updates: int, shift: float = 0.0) -> Path:
    """Write a metrics file like that of a training."""
    with file.open("w") as out:
        for step in range(1, updates + 1):
            loss = shift + 1.8 + 2.5 * math.exp(-step / 100)
            out.write(json.dumps({"step": step, "loss": loss, "lr": 1e-3 / step, "grad_norm": 1.0}) + "\n")
            if step % 50 == 0:
                out.write(json.dumps({"step": step, "val_loss": loss + 0.05}) + "\n")
    return file


def test_records_are_sorted_into_curves(tmp_path: Path) -> None:
    curves = Curves.read(write_run(tmp_path / "metrics.jsonl", 120))
    assert list(curves.steps) == list(range(1, 121))
    assert list(curves.val_steps) == [50, 100]
    assert curves.val_loss[0] == pytest.approx(curves.loss[49] + 0.05)
    assert curves.lr[9] == pytest.approx(1e-4)


def test_a_loss_that_was_not_finite_is_a_gap() -> None:
    curves = Curves.of([{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": None, "lr": 0.1}])
    np.testing.assert_array_equal(curves.loss, [2.0, math.nan])


@pytest.mark.parametrize("window", [0, 1, 2, 5, 100])
def test_smoothing_is_the_mean_around_each_value(window: int) -> None:
    values = np.array([4.0, 1.0, math.nan, 5.0, 2.0, 2.0, 9.0])
    half = min(window, len(values)) // 2
    expected = [np.nanmean(values[max(0, i - half) : i + half + 1]) if half or i != 2 else math.nan for i in range(7)]
    np.testing.assert_allclose(smoothed(values, window), expected)
    assert smoothed(np.empty(0), window).size == 0


@pytest.mark.parametrize("updates", [0, 1, 3, 60, 600])
def test_one_run_at_any_length(tmp_path: Path, updates: int) -> None:
    plot_loss(write_run(tmp_path / "metrics.jsonl", updates), tmp_path / "loss.png", "a run")
    image = matplotlib.image.imread(tmp_path / "loss.png")
    assert image.shape == (728, 1170, 4)
    assert image[..., :3].std() > 0.02


def test_every_run_has_a_legend_entry_with_its_validation_loss(tmp_path: Path) -> None:
    runs = {f"τ = {delay}": write_run(tmp_path / f"{delay}.jsonl", 100, 0.1 * delay) for delay in range(3)}
    figure = loss_figure({label: Curves.read(file) for label, file in runs.items()})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    ends = [1.8 + 2.5 * math.exp(-1) + 0.05 + 0.1 * delay for delay in range(3)]
    assert [entry.get_text() for entry in legend.get_texts()] == [
        f"τ = {delay}: validation {end:.4f} at the end" for delay, end in enumerate(ends)
    ]
    assert len(figure.axes[1].lines) == 1  # the schedule is shared
    plot_runs(runs, tmp_path / "runs.png", "delays")
    assert (tmp_path / "runs.png").stat().st_size > 10_000


def test_an_outlier_does_not_flatten_the_plot() -> None:
    records = [{"step": step, "loss": 2.0 + step / 1000, "lr": 1.0} for step in range(1, 1001)]
    records[500]["loss"] = 1e6
    records[501]["loss"] = math.nan
    low, high = loss_figure({"": Curves.of(records)}).axes[0].get_ylim()
    assert low < 2.0
    assert high < 1e5


def test_the_loss_scale_has_its_own_axes_if_losses_are_scaled() -> None:
    plain = [{"step": step, "loss": 2.0, "lr": 1.0} for step in (1, 2, 3)]
    scaled = [record | {"loss_scale": 1024.0 / record["step"], "skipped": record["step"] == 2} for record in plain]
    assert len(loss_figure({"": Curves.of(plain)}).axes) == 2
    figure = loss_figure({"none": Curves.of(plain), "dynamic": Curves.of(scaled)})
    assert len(figure.axes) == 3
    assert figure.axes[2].get_ylabel().startswith("loss scale")
    curve, crosses = figure.axes[2].lines[2:]
    assert list(np.asarray(curve.get_ydata())) == [1024.0, 512.0, 1024.0 / 3]
    assert list(np.asarray(crosses.get_xdata())) == [2.0]


def test_the_average_and_the_noise_scale_are_plotted_if_a_run_has_them() -> None:
    """The noise scale is the quotient of averages: of noise 30 and a signal that alternates around 2."""
    records: list[dict[str, float]] = [
        {"step": n, "loss": 2.0, "lr": 1.0, "noise": 30.0, "signal": 2.0 + 3.0 * (-1) ** n} for n in range(1, 401)
    ]
    records += [{"step": 200, "val_loss": 2.1, "ema_loss": 2.05}, {"step": 400, "val_loss": 2.0, "ema_loss": 1.95}]
    figure = loss_figure({"": Curves.of(records)})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "training", "validation 2.0000 at the end", "average of the weights 1.9500 at the end"
    ]  # fmt: skip
    assert len(figure.axes) == 3
    assert figure.axes[2].get_ylabel() == "noise scale\n(sequences)"
    (curve,) = figure.axes[2].lines
    np.testing.assert_allclose(np.asarray(curve.get_ydata(), float)[50:-50], 15.0, rtol=0.1)
    assert len(loss_figure({"": Curves.of([{"step": 1, "loss": 2.0, "lr": 1.0}])}).axes) == 2
    both = loss_figure({"": Curves.of([{**record, "loss_scale": 2.0} for record in records])})
    assert len(both.axes) == 4
