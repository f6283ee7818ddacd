"""The command `threadloom doctor`."""

import json

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import report_console, reported_errors


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--no-measure", is_flag=True, help="Skip the measurements.")
def doctor(*, as_json: bool, no_measure: bool) -> None:
    """Report on this machine and the settings that follow from it."""
    with reported_errors():
        import msgspec

        from threadloom.stages.tools.doctor.examination import doctor_dict, examine
        from threadloom.stages.tools.doctor.view import DoctorView

        report = examine(measure=not no_measure)
        if as_json:
            write_output(json.dumps(msgspec.to_builtins(doctor_dict(report)), indent=2))  # ASCII
        else:
            report_console(least=80, in_files=80).print(DoctorView(report))
