"""The command `threadloom grow`."""

from pathlib import Path

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import reported_errors


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--width", default="1", metavar="K", show_default=True,
              help="Multiple of the channels, the heads and the hidden layer of the MLP.")  # fmt: skip
@click.option("--depth", default="0", metavar="+N", show_default=True, help="Number of layers to insert.")
@click.option("--where", type=click.Choice(["end", "even"]), default="end", show_default=True,
              help="Place of inserted layers: after the last one, or spread evenly.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="New directory.  [default: RUN-grown]")
@click.option("--moments", type=click.Choice(["carry", "zero"]), default="carry", show_default=True,
              help="AdamW's moments: carried over by the rules of the gradient, or 0.")  # fmt: skip
@click.option("--noise", type=click.FloatRange(min=0), metavar="STD",
              help="Deviation of the noise that lets the copies of a matrix learn different things.  "
              "[default: 0.02 / K]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the noise and of new layers.  [default: the run's]")
@click.option("--rewarm", type=click.IntRange(min=0), metavar="N",
              help="Updates of a second warm-up.  [default: 100, at most half of those that are left]")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Updates in all, those of RUN included.  [default: as RUN]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a setting of the run from here on, such as optimizer.lr=5e-4. Repeatable.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write a run that does not fit into the available memory.")
def grow(
    run: Path,
    width: str,
    depth: str,
    where: str,
    out: Path | None,
    moments: str,
    noise: float | None,
    seed: int | None,
    rewarm: int | None,
    steps: int | None,
    overrides: tuple[str, ...],
    force: bool,
) -> None:
    """Write a larger model that computes the same function, and trains on.

    RUN is a run directory, whose newest checkpoint is used, or a checkpoint of it: the new run in --out continues its
    updates, its data and its schedule. RUN may also be a model folder in Hugging Face's layout, to start from with
    train --init.

    \b
    threadloom grow runs/small --width 2 --out runs/wide
    threadloom train --resume --out runs/wide
    """
    with reported_errors():
        from threadloom.stages.tools.grow.growing import grow_at
        from threadloom.stages.tools.grow.request import GrowthRequest

        changed = overrides if steps is None else (*overrides, f"steps={steps}")
        request = GrowthRequest.of(width, depth, where, moments, noise, seed, rewarm, changed)
        for line in grow_at(run, out, request, force=force):
            write_output(line)
