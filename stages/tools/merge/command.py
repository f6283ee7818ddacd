"""The command `threadloom merge`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from threadloom.stages.tools.common import base_option, reported_errors
from threadloom.stages.tools.export import output_options, print_export

if TYPE_CHECKING:
    from threadloom.stages.inference import Model


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@base_option
@output_options
def merge(run: Path, out: Path, base: Path | None, dtype: str, shard_size: int) -> None:
    """Merge adapters (LoRA) into their model, and write the model.

    RUN is the directory of a run with adapters, a checkpoint of it, or a folder of adapters that PEFT has written. The
    sum is computed in float32 and rounded once; the context is that of the model, also after a run on shorter texts.
    OUT is as in `threadloom export`: a new folder, or a new .gguf file.
    """
    with reported_errors():
        print_export(partial(_open, run, base), out, dtype, shard_size)


def _open(run: Path, base: Path | None) -> "Model":
    """Return the model with its adapters merged; raises ConfigError for one without adapters."""
    from threadloom.stages.config import ConfigError
    from threadloom.stages.inference import Model

    opened = Model.open(run, base, full_context=True)
    if opened.base is None:
        raise ConfigError(
            str(run),
            expected="a run with adapters, a checkpoint of one, or a folder of adapters",
            got="a model without adapters",
            hint="write it with threadloom export RUN OUT",
        )
    return opened
