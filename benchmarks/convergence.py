"""Does delay cost quality? One recipe at several delays, one table, one picture: `python -m benchmarks.convergence`.

Each delay is a run of its own through the same session as `threadloom train`, with the same seed and the same batches,
at default and not at tuned settings, so that the losses can be had again on another machine of the same cores.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from stages.config import Config, apply_overrides, load_config
from stages.log import configure
from stages.plots import plot_runs
from stages.rundir import RunMode, read_metrics
from stages.session import Outcome, train
from stages.settings import InputError

TINYSHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
"""The text of nanoGPT's published figure; where it is not there, Python's own source stands for it."""
PICTURE = "convergence.png"


@dataclass(frozen=True)
class Converged:
    """One delay's run."""

    delay: int
    outcome: Outcome
    best: float
    """The lowest validation loss of all evaluations."""

    @property
    def tokens_per_s(self) -> float:
        """Over the whole run, evaluations and checkpoints included."""
        config = self.outcome.config
        return self.outcome.step * config.sequences * config.model.context / self.outcome.seconds


def converge(config: Config, delays: Sequence[int], out: Path) -> list[Converged]:
    """Train at each delay in a folder of its own under `out`, replacing earlier runs, and draw the picture."""
    done = []
    for delay in delays:
        folder = out / f"delay-{delay}"
        outcome = train(msgspec.structs.replace(config, delay=delay), folder, RunMode.OVERWRITE, tuned=False)
        losses = [record["val_loss"] for record in read_metrics(outcome.run.metrics) if "val_loss" in record]
        done.append(Converged(delay, outcome, min(losses)))
    runs = {f"τ = {run.delay}": run.outcome.run.metrics for run in done}
    plot_runs(runs, out / PICTURE, f"{config.name}, {config.steps:,} updates")
    return done


def table_of(done: Sequence[Converged]) -> Table:
    """Return the losses, each with its distance from the first delay's."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("delay τ", "final validation loss", "against the first", "lowest", "tokens/s", "seconds"):
        table.add_column(heading, justify="right")
    first = done[0].outcome.val_loss or 0.0
    for run in done:
        loss = run.outcome.val_loss or 0.0
        table.add_row(
            str(run.delay), f"{loss:.4f}", f"{loss - first:+.4f}", f"{run.best:.4f}",
            f"{run.tokens_per_s:,.0f}", f"{run.outcome.seconds:.1f}",
        )  # fmt: skip
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, metavar="NAME_OR_FILE")
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Default: ../shared/data/tinyshakespeare.txt if it is there, else Python's source.")  # fmt: skip
@click.option("--delays", default="0,1,2", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, as for train.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/convergence"), show_default=True)
def main(name: str, texts: tuple[str, ...], delays: str, overrides: tuple[str, ...], out: Path) -> None:
    """Train one recipe at several delays and draw the losses in one picture."""
    configure()
    if not texts and TINYSHAKESPEARE.exists():
        texts = (str(TINYSHAKESPEARE),)
    try:
        config = apply_overrides(load_config(name), overrides)
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=texts))
        done = converge(config, [int(delay) for delay in delays.split(",")], out)
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"{name} on {', '.join(texts) or 'the source of the standard library'}")
    console.print(table_of(done))
    console.print(f"picture: {out / PICTURE}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
