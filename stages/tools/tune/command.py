"""The command `threadloom tune`."""

import click

from threadloom.stages.tools.common import Seconds, changed_config, config_options, named_config, reported_errors


@click.command()
@config_options
@click.option("--budget", type=Seconds(least=1.0), metavar="TIME", default=60.0, show_default=True,
              help="Seconds that the trials may take.")  # fmt: skip
def tune(config_name: str | None, overrides: tuple[str, ...], steps: int | None, budget: float) -> None:
    """Find the fastest settings for this machine.

    Short measured runs compare thread counts, micro-batch, slots and channel sizes. The result is kept for this machine
    and model, and `train` uses it from then on.
    """
    with reported_errors():
        from threadloom.stages.tools.tune.tuning import run_tuning

        run_tuning(changed_config(named_config(config_name), overrides, steps), budget)
