"""Writing a model as a folder in Hugging Face's layout, or as a GGUF file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint import ExportedModel, export_model
from threadloom.stages.config import ConfigError
from threadloom.stages.data import digit_table
from threadloom.stages.inference import Model
from threadloom.stages.storage import INTEGERS_FILE, StoredFormat, encode_integers, power_of_two_grid, require_absent
from threadloom.stages.tools.export.gguf_file import GGUF_FORMATS, write_gguf

Floats = NDArray[np.float32]

_STORED = {"float32": StoredFormat.FLOAT32, "bf16": StoredFormat.BF16, "fp16": StoredFormat.FP16}
GGUF_SUFFIX = ".gguf"

_PLACES = (
    "Each digit has a token for each place of a number (data.digits=abacus), which Hugging Face's tokenizers cannot "
    "express: threadloom reads this tokenizer.json, transformers opens the model and takes the ids."
)


def export_opened(open_model: Callable[[], Model], out: Path, dtype: str, shard_bytes: int) -> list[str]:
    """Export a model to a new directory, or to a file if its name ends in .gguf; return lines that describe the result.

    `open_model` is called once the other arguments have been checked; `dtype` is a number format of the command. Raises
    ConfigError for one that the kind of file does not have, and the errors of `open_model`, `export_model` and
    `write_gguf`.
    """
    as_gguf = out.suffix == GGUF_SUFFIX
    formats = GGUF_FORMATS if as_gguf else _STORED
    if dtype not in formats:
        raise ConfigError(
            "--dtype",
            expected=f"{', '.join(formats)} for a folder",
            got=dtype,
            hint=f"{dtype} is a format of GGUF: give a name that ends in {GGUF_SUFFIX}",
        )
    require_absent(out)
    opened = open_model()
    tensors = {name: tensor for name, tensor in opened.weights._asdict().items() if tensor.size}
    folder, end = opened.tokenizer_folder, opened.tokenizer.end_of_text
    model = ExportedModel(folder, tensors, opened.geometry, end, opened.base)
    if as_gguf:
        write_gguf(model, opened.tokenizer, out, dtype)
        return [f"{out}: {opened.geometry}, {dtype}"]
    files = export_model(model, out, _STORED[dtype], shard_bytes, _integers_of(tensors))
    lines = [f"{out}: {opened.geometry}, {dtype}, {', '.join(files)}"]
    return [*lines, _PLACES] if digit_table(opened.tokenizer) else lines


def _integers_of(tensors: Mapping[str, Floats]) -> dict[str, bytes]:
    """Return a file with the token embedding as integers, if it is on a grid, as `embedding.lattice` leaves it."""
    found = power_of_two_grid(tensors["wte"]) if "wte" in tensors else None
    return {} if found is None else {INTEGERS_FILE: encode_integers(*found)}
