"""The command `threadloom export`."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import average_option, base_option, reported_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadloom.stages.inference import Model

FORMATS = ("float32", "bf16", "fp16", "q8_0")


class Size(click.ParamType[int]):
    """A number of bytes of at least 1, such as 500MB or 5GB; the units KB, MB, GB, TB, and KiB, MiB, GiB, TiB."""

    name = "size"
    _UNITS = {"": 1, "B": 1} | {
        f"{prefix}{suffix}": base**power
        for power, prefix in enumerate("KMGT", 1)
        for suffix, base in (("B", 1000), ("IB", 1024))
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes; fail for anything else."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Z]*)", str(value).strip().upper())
        size = int(float(match[1]) * self._UNITS.get(match[2], 0)) if match else 0
        if size < 1:
            self.fail(f"expected a size of at least one byte, such as 500MB or 5GB; got {value!r}", param, ctx)
        return size


def output_options(command: Any) -> Any:
    """Add the options for the number format and the size of the files of a written model."""
    for option in (
        click.option("--shard-size", type=Size(), default="5GB", show_default=True,
                     help="Largest size of a file of weights in a folder."),
        click.option("--dtype", type=click.Choice(FORMATS), default="float32", show_default=True,
                     help="Number format of the weights; q8_0 (8 bits, a scale for 32 elements) in GGUF only."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@base_option
@average_option
@output_options
def export(run: Path, out: Path, base: Path | None, average: bool, dtype: str, shard_size: int) -> None:
    """Write a trained model for other programs.

    RUN is a run directory, whose newest checkpoint is used, a checkpoint, or a model folder in Hugging Face's layout.
    Adapters are merged into their model (threadloom merge); a checkpoint of a run with adapters is a folder for PEFT.
    OUT is a new folder in that layout, which transformers, PEFT and vLLM open. If its name ends in .gguf, it is a new
    file for llama.cpp, which needs the package gguf (pip install 'threadloom[gguf]').
    """
    with reported_errors():
        print_export(partial(_open, run, base, average=average), out, dtype, shard_size)


def _open(run: Path, base: Path | None, *, average: bool) -> "Model":
    from threadloom.stages.inference import Model

    return Model.open(run, base, full_context=True, average=average)


def print_export(open_model: "Callable[[], Model]", out: Path, dtype: str, shard_bytes: int) -> None:
    """Write the model that `open_model` returns, as `export` does, and print what was written."""
    from threadloom.stages.tools.export.exporting import export_opened

    for line in export_opened(open_model, out, dtype, shard_bytes):
        write_output(line)
