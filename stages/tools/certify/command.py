"""The command `threadloom certify`."""

from pathlib import Path

import click
from loguru import logger

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import report_console, reported_errors

PRECISIONS = ("float32", "bf16x3", "bf16", "fp16")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="Text whose first tokens are used.")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True,
              help="Tokens of the sequence; at most the model's context.")  # fmt: skip
@click.option("--bits", type=click.IntRange(min=53, max=4096),
              help="Bits of the exact numbers.  [default: 128, or 64 + 16 per block of a deep model]")  # fmt: skip
@click.option("--precision", "names", type=click.Choice(PRECISIONS), multiple=True, default=PRECISIONS,
              help="Precision to certify. Repeatable.  [default: all four]")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Also write the certificate to this file as JSON.")  # fmt: skip
@click.option("--force", is_flag=True, help="Start even if the estimate is above ten minutes.")
def certify(
    run: Path, texts: tuple[str, ...], tokens: int, bits: int | None, names: tuple[str, ...], json_file: Path | None,
    force: bool,
) -> None:  # fmt: skip
    """Prove how far each precision is from the exact model.

    Evaluates a saved GPT-2 in ball arithmetic: every number is an interval that is proven to contain the exact one. The
    same tokens go through the kernels of each precision. The report has the largest distance of scores, probabilities,
    attention, residual stream, logits and loss, each from below and from above; the a-priori bound of attention's own
    error; the tokens whose most likely successor changes; and whether the precision is safe for this model.

    RUN is a run directory, whose newest checkpoint is used, a checkpoint, or the folder of a model in Hugging Face's
    layout. Without --text the tokens are the first ones of the run's validation split. It needs the package
    python-flint (pip install 'threadloom[certify]').
    """
    with reported_errors():
        from threadloom.stages.config import Precision
        from threadloom.stages.tools.certify.certifying import certify_model
        from threadloom.stages.tools.certify.report import CertificateView, verdicts, write_json

        precisions = [Precision(name) for name in dict.fromkeys(names)]
        certificate = certify_model(run, texts, tokens, bits, precisions, force=force, report=logger.info)
        report_console(least=40, in_files=160).print(CertificateView(certificate), highlight=False)
        for line in verdicts(certificate):
            write_output(line)
        if json_file is not None:
            write_json(certificate, json_file)
            write_output(f"written to {json_file}")
