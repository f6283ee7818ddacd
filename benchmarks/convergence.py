"""The effect of delay, precision and other settings on the loss of one recipe: `python -m benchmarks.convergence`.

Each variant, a delay with a precision or a list of settings (`--recipe`), is trained once per seed, through the same
session as `threadloom train`, on the same batches and with default instead of tuned settings, so that the losses can be
reproduced on another machine with the same number of cores.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Self

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
"""The text of nanoGPT's published result; if it is missing, the source of Python's standard library is used."""
PICTURE = "convergence.png"


@dataclass(frozen=True)
class Variant:
    """Settings to compare, with a name for tables and the plot, and one for folders."""

    name: str
    folder: str
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, delay: int, precision: Precision) -> Self:
        """Return the variant with a delay and a precision, and all else as in the recipe."""
        name = f"τ = {delay}" if precision is Precision.FLOAT32 else f"τ = {delay}, {precision.value}"
        return cls(name, f"delay-{delay}-{precision.value}", (f"delay={delay}", f"precision={precision.value}"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the variant in a text such as "fast: delay=2 optimizer.lr=4e-3". Raises ValueError."""
        name, colon, settings = text.partition(":")
        if not colon or not name.strip() or not settings.split():
            raise ValueError(f"--recipe {text!r}: expected 'NAME: key=value key=value ...'")
        folder = "".join(character if character.isalnum() else "-" for character in name.strip())
        return cls(name.strip(), folder, tuple(settings.split()))


@dataclass(frozen=True)
class Converged:
    """The result of one run."""

    variant: Variant
    seed: int
    outcome: Outcome
    best: float
    """Minimum validation loss over all evaluations."""

    @property
    def final(self) -> float:
        """Validation loss at the end."""
        return self.outcome.val_loss or math.nan

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the whole run, including evaluations and checkpoints."""
        config = self.outcome.config
        return self.outcome.step * config.sequences * config.model.context / self.outcome.seconds


def converge(config: Config, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Converged]:
    """Train each variant with each seed in a separate folder under `out`, replacing earlier runs.

    The plot shows the runs with the first seed.
    """
    done = []
    for seed in seeds:
        for variant in variants:
            folder = out / f"{variant.folder}-seed-{seed}"
            this = msgspec.structs.replace(apply_overrides(config, variant.overrides), seed=seed)
            outcome = train(this, folder, RunMode.OVERWRITE, tuned=False)
            losses = [record["val_loss"] for record in read_metrics(outcome.run.metrics) if "val_loss" in record]
            done.append(Converged(variant, seed, outcome, min(losses)))
    runs = {run.variant.name: run.outcome.run.metrics for run in done[: len(variants)]}
    plot_runs(runs, out / PICTURE, f"{config.name}, {config.steps:,} updates")
    return done


def convergence_table(done: Sequence[Converged]) -> Table:
    """Return the table of losses with their differences from the first variant with the same seed.

    For several seeds it has their means, and the standard error of the mean difference.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("variant", "seed", "final validation loss", "minus first variant", "lowest", "tokens/s", "seconds"):
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
        away = [run.final - first[run.seed] for run in runs]
        difference = f"{mean(away):+.4f} ± {stdev(away) / math.sqrt(len(away)):.4f}"
        final, best = mean(run.final for run in runs), mean(run.best for run in runs)
        rate = mean(run.tokens_per_s for run in runs)
        table.add_row(variant.name, "mean", f"{final:.4f}", difference, f"{best:.4f}", f"{rate:,.0f}", "")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, metavar="NAME_OR_FILE")
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Default: ../shared/data/tinyshakespeare.txt if present, else the source of Python.")  # fmt: skip
@click.option("--delays", default="0,1,2", show_default=True)
@click.option("--precisions", default="float32", show_default=True, help="For example float32,bf16,fp16.")
@click.option("--recipe", "recipes", multiple=True, metavar="'NAME: KEY=VALUE ...'",
              help="A variant with these settings, instead of --delays and --precisions. Repeatable.")  # fmt: skip
@click.option("--seeds", default="", help="For example 1337,1,2. Default: the seed of the configuration.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, as for train.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/convergence"), show_default=True)
def main(
    name: str, texts: tuple[str, ...], delays: str, precisions: str, recipes: tuple[str, ...], seeds: str,
    overrides: tuple[str, ...], out: Path,
) -> None:  # fmt: skip
    """Train one recipe in several variants and plot the losses together."""
    configure()
    if not texts and TINYSHAKESPEARE.exists():
        texts = (str(TINYSHAKESPEARE),)
    try:
        config = apply_overrides(load_config(name), overrides)
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=texts))
        chosen = [int(seed) for seed in seeds.split(",")] if seeds else [config.seed]
        variants = [Variant.parse(recipe) for recipe in recipes] or [
            Variant.of(int(delay), Precision(precision))
            for precision in precisions.split(",")
            for delay in delays.split(",")
        ]
        done = converge(config, variants, chosen, out)
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"{name} on {', '.join(texts) or 'the source of the standard library'}")
    console.print(convergence_table(done))
    console.print(f"plot: {out / PICTURE}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
