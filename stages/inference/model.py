"""A trained model, read from a run directory, a checkpoint, or a folder in Hugging Face's layout."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import TokenIds
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    latest_checkpoint,
    load_model,
    read_end_ids,
)
from threadloom.stages.config import InputError, SpecialTokens
from threadloom.stages.data import Tokenizer, TokenizerError, load_tokenizer
from threadloom.stages.layouts import ModelWeights, as_weights
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.storage import CONFIG_FILE

TOKENIZER_FILE = "tokenizer.json"


class ModelError(InputError):
    """A path without a model, or a model that cannot be used."""


@dataclass(frozen=True)
class Model:
    """Weights, geometry and tokenizer. The weights are read-only by convention: several threads may share a model."""

    path: Path
    geometry: Geometry
    weights: ModelWeights
    tokenizer: Tokenizer
    step: int | None
    """Number of updates that the weights result from; None if unknown (Hugging Face's layout)."""
    end_ids: frozenset[int] = frozenset()
    """Ids of the tokens that end a text."""

    @property
    def packed(self) -> None:
        """None: inference runs in float32, whose GEMMs read `weights`."""

    @cached_property
    def ids_without_text(self) -> NDArray[np.intp]:
        """The ids (N,) of the model's vocabulary that the tokenizer has no text for, such as padding."""
        return np.setdiff1d(np.arange(self.geometry.vocabulary), self.tokenizer.ids_with_text())

    def prompt(self, text: str, special: SpecialTokens = SpecialTokens.TEXT) -> TokenIds:
        """Return the ids of a text to continue, after those with which the tokenizer begins a text, such as <s>.

        `special` is the treatment of special tokens in the text. If they are tokens and the text begins with them, they
        are not repeated. Raises TokenizerError.
        """
        ids, beginning = self.tokenizer.with_special_tokens(special).encode(text), self.tokenizer.beginning
        if len(beginning) and np.array_equal(ids[: len(beginning)], beginning):
            return ids
        return np.concatenate([beginning, ids])

    def default_prompt(self) -> TokenIds:
        """Return the prompt of a text without one: the ids with which the tokenizer begins a text, otherwise a newline.

        It is id 0 if the tokenizer cannot encode a newline.
        """
        if len(self.tokenizer.beginning):
            return self.tokenizer.beginning
        try:
            return self.tokenizer.encode("\n")
        except TokenizerError:  # it was trained on a single line
            return np.zeros(1, np.int32)

    @classmethod
    def open(cls, path: Path) -> "Model":
        """Open the newest checkpoint of a run directory, a checkpoint, or a model in Hugging Face's layout.

        Raises `ModelError` if there is none, `CheckpointError` or `TokenizerError` if its files are damaged.
        """
        folder = latest_checkpoint(path / "checkpoints") or path
        if (folder / MANIFEST_FILE).exists():
            checkpoint = Checkpoint.open(folder, for_training=False)
            arena = Arena(parameter_shapes(checkpoint.geometry))
            checkpoint.read_weights(checkpoint.step, arena)
            tokenizer = load_tokenizer(checkpoint.tokenizer or folder / TOKENIZER_FILE)
            ends = read_end_ids(folder) or _end_ids(tokenizer)
            geometry, weights = checkpoint.geometry, as_weights(checkpoint.geometry, arena)
            return cls(folder, geometry, weights, tokenizer, checkpoint.step, ends)
        if (folder / CONFIG_FILE).exists():
            geometry, arena = load_model(folder)
            tokenizer = load_tokenizer(folder)
            ends = read_end_ids(folder) or _end_ids(tokenizer)
            return cls(folder, geometry, as_weights(geometry, arena), tokenizer, None, ends)
        raise ModelError(
            str(path),
            expected="a run directory with a checkpoint, a checkpoint, or a model in Hugging Face's layout",
            got="none of them" if path.exists() else "no such folder",
            hint="pass the folder of train --out, once the run has written its first checkpoint",
        )


def _end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset[int]() if tokenizer.end_of_text is None else frozenset({tokenizer.end_of_text.id})
