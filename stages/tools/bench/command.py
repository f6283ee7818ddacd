"""The command `threadloom bench`."""

from pathlib import Path

import click
from loguru import logger

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import Seconds, changed_config, named_config, report_console, reported_errors

DEFAULT_CONFIGS = ("nanogpt-cpu", "small", "optimized")


@click.command()
@click.option("--config", "names", multiple=True, metavar="NAME_OR_FILE",
              help="Configuration to measure. Repeatable. Default: nanogpt-cpu, small and optimized.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of each. Repeatable.")
@click.option("--seconds", type=Seconds(least=0.0), metavar="TIME", default=5.0, show_default=True,
              help="Seconds per configuration for each execution mode, and for the kernels.")  # fmt: skip
@click.option("--cold", is_flag=True, help="Also time the start without compiled kernels, which takes half a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Also write the report to this file as JSON.")  # fmt: skip
def bench(
    names: tuple[str, ...], overrides: tuple[str, ...], seconds: float, cold: bool, json_file: Path | None
) -> None:
    """Measure training speed against the peaks of this machine.

    Checks the results first. Then, for each configuration: tokens per second in one thread, stage by stage, and in the
    pipeline at each delay; the time in each stage; each kernel and its roofline bound; memory compared with the plan;
    and the time to start.
    """
    with reported_errors():
        from threadloom.stages.tools.bench.check import BenchCheckFailed
        from threadloom.stages.tools.bench.measurements import run_bench
        from threadloom.stages.tools.bench.report import write_json
        from threadloom.stages.tools.bench.tables import BenchView

        configs = [changed_config(named_config(name), overrides) for name in names or DEFAULT_CONFIGS]
        try:
            report = run_bench(configs, seconds, cold, logger.info)
        except BenchCheckFailed as error:
            raise click.ClickException(str(error)) from error
        report_console(least=40, in_files=180).print(BenchView(report), highlight=False)
        if json_file is not None:
            write_json(report, json_file)
            write_output(f"written to {json_file}")
