"""Loss curves of threadloom and PyTorch from the same weights and batches: `python -m benchmarks.curves`.

threadloom trains on a text through the same session as `threadloom train`, once per precision. PyTorch, in float32,
starts from the same weights and reads the same batches. The learning rate is constant on both sides, or follows the
schedule of the configuration.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.inputs import write_inputs
from benchmarks.protocol import Side, SideWorker
from benchmarks.throughput import sizes_of
from threadloom.stages.config import (
    Config,
    EvaluationConfig,
    InputError,
    Precision,
    ScheduleConfig,
    ScheduleKind,
)
from threadloom.stages.console import configure
from threadloom.stages.data import TokenBatches, TokenFile, prepared_order
from threadloom.stages.machine import detect
from threadloom.stages.models import initialise, parameter_shapes
from threadloom.stages.resolve import apply_overrides, load_config, to_json
from threadloom.stages.run import Outcome, train
from threadloom.stages.step.optimizers import learning_rates
from threadloom.stages.storage import RunMode, read_metrics

LAST = 100
"""Updates at the end of a curve whose mean loss is its final loss."""
REPORTED = 50
"""Updates of PyTorch between two lines of progress."""


@dataclass(frozen=True)
class LossCurve:
    """The losses of a training."""

    name: str
    losses: list[float]

    @property
    def final(self) -> float:
        """The mean loss of the last updates."""
        return mean(self.losses[-LAST:])

    def farthest(self, other: "LossCurve") -> float:
        """Return the largest difference of two losses of the same update."""
        return float(np.abs(np.subtract(self.losses, other.losses)).max())


def short_run(
    config: Config, updates: int, precision: Precision, text: Sequence[str], *, scheduled: bool = False
) -> Config:
    """Return a configuration for `updates` updates, without evaluations before the end.

    The learning rate is constant, or `scheduled` as that of the configuration.
    """
    return msgspec.structs.replace(
        config,
        steps=updates,
        precision=precision,
        schedule=config.schedule if scheduled else ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup=0),
        evaluation=EvaluationConfig(interval=0, batches=1),
        data=msgspec.structs.replace(config.data, text=tuple(text)),
    )


def our_curve(config: Config, folder: Path) -> tuple[LossCurve, Outcome]:
    """Train with threadloom in a run directory, replacing an earlier run; return the losses and the run."""
    outcome = train(config, folder, RunMode.OVERWRITE, tuned=False)
    losses = [record["loss"] for record in read_metrics(outcome.run.metrics) if "loss" in record]
    return LossCurve(f"threadloom {config.precision.value}", losses), outcome


def their_curve(outcome: Outcome, on_progress: Callable[[str], None]) -> LossCurve:
    """Train with PyTorch in float32, in another process, from the weights and batches of a run of threadloom."""
    config, geometry = outcome.config, outcome.config.geometry()
    weights = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(geometry).items()}
    initialise(weights, geometry, config.seed, residual_scaling=config.model.residual_scaling)
    tokens = TokenFile.open(
        outcome.run.data / "train.npy", geometry.vocabulary, geometry.context, prepared_order(outcome.run.data)
    )
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        source = TokenBatches(tokens, config.batch_sizes, config.seed)
        write_inputs(Path(name), weights, source, config, config.steps)
        rates = tuple(map(learning_rates(config), range(config.steps)))
        sizes = msgspec.structs.replace(sizes_of(config, detect().logical_cores), rates=rates)
        with SideWorker(Side.EAGER, to_json(config), sizes, folder=Path(name)) as peer:
            while len(losses) < config.steps:
                losses += peer.run(min(REPORTED, config.steps - len(losses))).losses
                on_progress(f"{peer.name}: update {len(losses)}, loss {losses[-1]:.4f}")
    return LossCurve(peer.name, losses)


def curves_table(curves: Sequence[LossCurve], base: LossCurve) -> Table:
    """Return the table of final losses, with their differences from those of `base`."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("side", f"loss, mean of {LAST} updates", "difference", "largest difference of an update"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for curve in curves:
        difference = () if curve is base else (f"{curve.final - base.final:+.5f}", f"{curve.farthest(base):.1e}")
        table.add_row(curve.name, f"{curve.final:.5f}", *difference)
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="llama-small", show_default=True, metavar="NAME_OR_FILE")
@click.option("--text", "text", multiple=True, metavar="FILE_OR_DIR", help="Default: the source of Python.")
@click.option("--updates", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--precisions", default="float32", show_default=True, help="Of threadloom, for example float32,bf16.")
@click.option("--schedule", "scheduled", is_flag=True, help="Follow the configuration's learning-rate schedule.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, as for train.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/curves"), show_default=True)
def main(
    name: str, text: tuple[str, ...], updates: int, precisions: str, scheduled: bool, overrides: tuple[str, ...],
    out: Path,
) -> None:  # fmt: skip
    """Train a configuration with threadloom and with PyTorch, and compare the losses."""
    configure()
    console = Console(width=None if sys.stdout.isatty() else 110)
    try:
        config, curves = apply_overrides(load_config(name), overrides), []
        for precision in map(Precision, precisions.split(",")):
            wanted = short_run(config, updates, precision, text, scheduled=scheduled)
            curve, outcome = our_curve(wanted, out / precision.value)
            curves.append(curve)
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    theirs = their_curve(outcome, lambda line: console.print(line, style="dim", highlight=False))
    curves.append(theirs)
    (out / "curves.json").write_text(json.dumps({curve.name: curve.losses for curve in curves}) + "\n")
    console.print(curves_table(curves, theirs))
    console.print(f"written to {out}/curves.json", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
