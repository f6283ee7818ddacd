"""Does delay, or a precision, cost quality? One recipe in several variants: `python -m benchmarks.convergence`.

Each variant, a delay with a precision, is a run of its own for each seed, through the same session as `threadloom
train`, on the same batches, at default and not at tuned settings, so that the losses can be had again on another
machine of the same cores.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import click
import msgspec
from rich.console import Console
from rich.table import Table

from threadloom.stages.config import Config, InputError, Precision
from threadloom.stages.console import configure
from threadloom.stages.resolve import apply_overrides, load_config
from threadloom.stages.run import Outcome, plot_runs, train
from threadloom.stages.storage import RunMode, read_metrics

TINYSHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
"""The text of nanoGPT's published figure; where it is not there, Python's own source stands for it."""
PICTURE = "convergence.png"


@dataclass(frozen=True)
class Variant:
    """What is compared with what."""

    delay: int
    precision: Precision

    @property
    def name(self) -> str:
        """How tables and the picture call it."""
        return (
            f"τ = {self.delay}" if self.precision is Precision.FLOAT32 else f"τ = {self.delay}, {self.precision.value}"
        )


@dataclass(frozen=True)
class Converged:
    """One run."""

    variant: Variant
    seed: int
    outcome: Outcome
    best: float
    """The lowest validation loss of all evaluations."""

    @property
    def final(self) -> float:
        """The validation loss at the end."""
        return self.outcome.val_loss or math.nan

    @property
    def tokens_per_s(self) -> float:
        """Over the whole run, evaluations and checkpoints included."""
        config = self.outcome.config
        return self.outcome.step * config.sequences * config.model.context / self.outcome.seconds


def converge(config: Config, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Converged]:
    """Train each variant with each seed in a folder of its own under `out`, replacing earlier runs.

    The picture shows the runs of the first seed.
    """
    done = []
    for seed in seeds:
        for variant in variants:
            folder = out / f"delay-{variant.delay}-{variant.precision.value}-seed-{seed}"
            this = msgspec.structs.replace(config, delay=variant.delay, precision=variant.precision, seed=seed)
            outcome = train(this, folder, RunMode.OVERWRITE, tuned=False)
            losses = [record["val_loss"] for record in read_metrics(outcome.run.metrics) if "val_loss" in record]
            done.append(Converged(variant, seed, outcome, min(losses)))
    runs = {run.variant.name: run.outcome.run.metrics for run in done[: len(variants)]}
    plot_runs(runs, out / PICTURE, f"{config.name}, {config.steps:,} updates")
    return done


def table_of(done: Sequence[Converged]) -> Table:
    """Return the losses, each with its distance from the first variant's with the same seed, and the means."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("variant", "seed", "final validation loss", "against the first", "lowest", "tokens/s", "seconds"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    variants, seeds = list(dict.fromkeys(run.variant for run in done)), list(dict.fromkeys(run.seed for run in done))
    first = {run.seed: run.final for run in done if run.variant == variants[0]}
    for run in done:
        table.add_row(
            run.variant.name, str(run.seed), f"{run.final:.4f}", f"{run.final - first[run.seed]:+.4f}",
            f"{run.best:.4f}", f"{run.tokens_per_s:,.0f}", f"{run.outcome.seconds:.1f}",
        )  # fmt: skip
    for variant in variants if len(seeds) > 1 else []:
        runs = [run for run in done if run.variant == variant]
        final, away = mean(run.final for run in runs), mean(run.final - first[run.seed] for run in runs)
        best, rate = mean(run.best for run in runs), mean(run.tokens_per_s for run in runs)
        table.add_row(variant.name, "mean", f"{final:.4f}", f"{away:+.4f}", f"{best:.4f}", f"{rate:,.0f}", "")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, metavar="NAME_OR_FILE")
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Default: ../shared/data/tinyshakespeare.txt if it is there, else Python's source.")  # fmt: skip
@click.option("--delays", default="0,1,2", show_default=True)
@click.option("--precisions", default="float32", show_default=True, help="Such as float32,bf16,fp16.")
@click.option("--seeds", default="", help="Such as 1337,1,2; default: the configuration's own.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, as for train.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/convergence"), show_default=True)
def main(
    name: str, texts: tuple[str, ...], delays: str, precisions: str, seeds: str, overrides: tuple[str, ...], out: Path
) -> None:
    """Train one recipe in several variants and draw the losses in one picture."""
    configure()
    if not texts and TINYSHAKESPEARE.exists():
        texts = (str(TINYSHAKESPEARE),)
    try:
        config = apply_overrides(load_config(name), overrides)
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=texts))
        chosen = [int(seed) for seed in seeds.split(",")] if seeds else [config.seed]
        variants = [
            Variant(int(delay), Precision(precision))
            for precision in precisions.split(",")
            for delay in delays.split(",")
        ]
        done = converge(config, variants, chosen, out)
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"{name} on {', '.join(texts) or 'the source of the standard library'}")
    console.print(table_of(done))
    console.print(f"picture: {out / PICTURE}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
