"""The command `threadloom tune`."""

from pathlib import Path

import click

from threadloom.stages.tools.common import Seconds, changed_config, config_options, named_config, reported_errors

PRECISIONS = ("float32", "bf16x3", "bf16", "fp16")
"""Values of --precision; a test compares them with `Precision`, which takes long to import."""


@click.command()
@config_options
@click.option("--budget", type=Seconds(least=1.0), metavar="TIME", default=60.0, show_default=True,
              help="Seconds that the trials may take.")  # fmt: skip
@click.option("--goal", "aim", metavar="GOAL", default="throughput", show_default=True,
              help="throughput, or loss=NUMBER: the least expected time to that validation loss, for which the delay, "
              "the learning rate and the warm-up are compared too.")  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="With --goal loss: the text of the pilots.")
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="With --goal loss: write the configuration with the chosen settings to a file.")  # fmt: skip
@click.option("--pipeline", "graph", metavar="MODULE:GRAPH",
              help="Tune a graph of your own instead of a training: a function without arguments that returns a new "
              "Graph, or a Graph that can be started several times, as module:graph or "
              "path/to/file.py:graph.")  # fmt: skip
@click.option("--fixed", multiple=True, metavar="STAGE", help="With --pipeline: keep the sizes of a stage. Repeatable.")
@click.option("--any-order", is_flag=True,
              help="With --pipeline: more workers may change the order of the results.")  # fmt: skip
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw what was tried, speed against memory, into a PNG file. By default the picture of a training "
              "is next to the tuning record.")  # fmt: skip
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["any", *PRECISIONS]),
              help="Permit another precision, or any: it is chosen if the defaults are faster in it. "
              "Repeatable.")  # fmt: skip
def tune(
    config_name: str | None, overrides: tuple[str, ...], steps: int | None, budget: float, aim: str,
    texts: tuple[str, ...], write: Path | None, graph: str | None, fixed: tuple[str, ...], any_order: bool,
    picture: Path | None, precisions: tuple[str, ...],
) -> None:  # fmt: skip
    """Find the fastest settings for this machine.

    Short measured runs compare thread counts, micro-batch, slots and channel sizes. The result is kept for this machine
    and model, and `train` uses it from then on.

    With --pipeline they compare workers and capacities of the stages of a graph of your own, and the values to write
    are printed.
    """
    if graph is None and (fixed or any_order):
        raise click.UsageError("--fixed and --any-order need --pipeline")
    if graph is not None and (config_name or overrides or steps is not None or texts or write):
        raise click.UsageError(
            "--pipeline tunes a graph of your own: omit --config, --set, --steps, --text and --write"
        )
    if precisions and graph is not None:
        raise click.UsageError("--precision compares speeds of a training: omit --pipeline")
    with reported_errors():
        if graph is not None:
            from threadloom.stages.tools.tune.graph_tuning import run_graph_tuning

            run_graph_tuning(graph, budget, fixed, any_order, picture)
            return
        from threadloom.stages.tools.tune.goal import Goal, run_goal

        goal = Goal.parse(aim)
        config = changed_config(named_config(config_name), overrides, steps, texts)
        if goal.loss is not None:
            run_goal(config, goal, budget, write, picture=picture, precisions=precisions)
            return
        from threadloom.stages.tools.tune.tuning import run_tuning

        run_tuning(config, budget, picture, precisions=precisions)
