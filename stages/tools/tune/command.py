"""The command `threadloom tune`."""

import click

from threadloom.stages.tools.common import Seconds, changed_config, config_options, named_config, reported_errors


@click.command()
@config_options
@click.option("--budget", type=Seconds(least=1.0), metavar="TIME", default=60.0, show_default=True,
              help="Seconds that the trials may take.")  # fmt: skip
@click.option("--pipeline", "graph", metavar="MODULE:GRAPH",
              help="Tune a graph of your own instead of a training: a function without arguments that returns a new "
              "Graph, or a Graph that can be started several times, as module:graph or "
              "path/to/file.py:graph.")  # fmt: skip
@click.option("--fixed", multiple=True, metavar="STAGE", help="With --pipeline: keep the sizes of a stage. Repeatable.")
@click.option("--any-order", is_flag=True,
              help="With --pipeline: more workers may change the order of the results.")  # fmt: skip
def tune(
    config_name: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    budget: float,
    graph: str | None,
    fixed: tuple[str, ...],
    any_order: bool,
) -> None:
    """Find the fastest settings for this machine.

    Short measured runs compare thread counts, micro-batch, slots and channel sizes. The result is kept for this machine
    and model, and `train` uses it from then on.

    With --pipeline they compare workers and capacities of the stages of a graph of your own, and the values to write
    are printed.
    """
    if graph is None and (fixed or any_order):
        raise click.UsageError("--fixed and --any-order need --pipeline")
    if graph is not None and (config_name or overrides or steps is not None):
        raise click.UsageError("--pipeline tunes a graph of your own: omit --config, --set and --steps")
    with reported_errors():
        if graph is not None:
            from threadloom.stages.tools.tune.graph_tuning import run_graph_tuning

            run_graph_tuning(graph, budget, fixed, any_order)
            return
        from threadloom.stages.tools.tune.tuning import run_tuning

        run_tuning(changed_config(named_config(config_name), overrides, steps), budget)
