"""Exporting a run, a checkpoint or a model folder."""

from pathlib import Path

from threadloom.stages.checkpoint import ExportedModel, export_model
from threadloom.stages.inference import Model
from threadloom.stages.storage import StoredFormat, require_absent

_STORED = {"float32": StoredFormat.FLOAT32, "bf16": StoredFormat.BF16, "fp16": StoredFormat.FP16}


def export_run(run: Path, out: Path, dtype: str, shard_bytes: int) -> list[str]:
    """Export a model to a new directory and return lines that describe the result.

    `dtype` is a number format of the command. Raises the errors of `Model.open` and `export_model`.
    """
    require_absent(out)
    opened = Model.open(run)
    tensors = {name: tensor for name, tensor in opened.weights._asdict().items() if tensor.size}
    model = ExportedModel(opened.path, tensors, opened.geometry, opened.tokenizer.end_of_text)
    files = export_model(model, out, _STORED[dtype], shard_bytes)
    return [f"{out}: {opened.geometry}, {dtype}, {', '.join(files)}"]
