"""A trained model, opened for reading: from a run directory, a checkpoint, or a folder in Hugging Face's layout."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threadloom.kernels import TokenIds, Weights
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import CONFIG_FILE, MANIFEST_FILE, Checkpoint, latest_checkpoint, load_model
from threadloom.stages.config import InputError
from threadloom.stages.data import Tokenizer, TokenizerError, load_tokenizer
from threadloom.stages.memory import as_weights
from threadloom.stages.models import Geometry, parameter_shapes

TOKENIZER_FILE = "tokenizer.json"


class ModelError(InputError):
    """There is no model to open where one was named."""


@dataclass(frozen=True)
class Model:
    """Weights, sizes and tokenizer; `weights` are views of memory that nothing else writes."""

    path: Path
    geometry: Geometry
    weights: Weights
    tokenizer: Tokenizer
    step: int | None
    """Updates that made it; None for a model from elsewhere."""

    @property
    def packed(self) -> None:
        """A model that is read is computed with in float32."""
        return

    def start(self) -> TokenIds:
        """Return what a text begins with where nothing is given: the end of a line, or id 0 where none is known."""
        try:
            return self.tokenizer.encode("\n")
        except TokenizerError:  # it learned from a single line
            return np.zeros(1, np.int32)

    @classmethod
    def open(cls, path: Path) -> "Model":
        """Open the newest checkpoint of a run directory, a checkpoint, or a GPT-2 model of Hugging Face's layout.

        Raises ModelError where there is none, CheckpointError or TokenizerError for one that is damaged.
        """
        folder = latest_checkpoint(path / "checkpoints") or path
        if (folder / MANIFEST_FILE).exists():
            checkpoint = Checkpoint.open(folder, for_training=False)
            arena = Arena(parameter_shapes(checkpoint.geometry))
            checkpoint.read_weights(checkpoint.step, arena)
            tokenizer = load_tokenizer(checkpoint.tokenizer or folder / TOKENIZER_FILE)
            return cls(folder, checkpoint.geometry, as_weights(arena), tokenizer, checkpoint.step)
        if (folder / CONFIG_FILE).exists():
            geometry, arena = load_model(folder)
            return cls(folder, geometry, as_weights(arena), load_tokenizer(folder / TOKENIZER_FILE), None)
        raise ModelError(
            str(path),
            expected="a run directory with a checkpoint, a checkpoint, or a GPT-2 model in Hugging Face's layout",
            got="none of them" if path.exists() else "no such folder",
            cause="the run has not reached its first checkpoint yet, or the path is another",
            hint="name the folder that was given to train --out, or train for longer",
        )
