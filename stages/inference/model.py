"""A trained model, read from a run directory, a checkpoint, a model in Hugging Face's layout or adapters in PEFT's."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import TokenIds
from threadloom.stages.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    FolderWeights,
    latest_checkpoint,
    load_merged,
    load_model,
    read_end_ids,
    require_memory,
)
from threadloom.stages.config import InputError, SpecialTokens
from threadloom.stages.data import Tokenizer, TokenizerError, load_tokenizer
from threadloom.stages.inference.stored_weights import (
    DecodePrecision,
    format_of,
    read_stored,
    resolved,
    stored_bytes,
    stored_weights,
)
from threadloom.stages.layouts import ModelWeights, as_weights
from threadloom.stages.models import Geometry
from threadloom.stages.storage import (
    CONFIG_FILE,
    CheckpointError,
    base_folder,
    is_adapter_folder,
    read_adapter_config,
    read_geometry,
)

TOKENIZER_FILE = "tokenizer.json"


class ModelError(InputError):
    """A path without a model, or a model that cannot be used."""


@dataclass(frozen=True)
class Model:
    """Weights, geometry and tokenizer. The weights are read-only by convention: several threads may share a model."""

    path: Path
    geometry: Geometry
    weights: ModelWeights
    """In float32, or as `stored_as` converts them: then the model can only generate."""
    tokenizer: Tokenizer
    step: int | None
    """Number of updates that the weights result from; None if unknown (Hugging Face's layout)."""
    end_ids: frozenset[int] = frozenset()
    """Ids of the tokens that end a text."""
    base: Path | None = None
    """Folder of the model that adapters have been merged into; None if there are none."""

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the files of the tokenizer: that of the adapters, or of the model that they belong to."""
        return self.base if self.base and not (self.path / TOKENIZER_FILE).exists() else self.path

    @property
    def packed(self) -> None:
        """None: inference runs in float32, whose GEMMs read `weights`."""

    def stored_as(self, precision: DecodePrecision) -> "Model":
        """Return the model with its matrices in a number format of generation; they are converted at the first call.

        The memory of this model's own weights is free once nothing refers to this model. `open` converts them as it
        reads them, which takes less memory. Raises `ModelError` if the model was converted to another format before.
        """
        chosen, present = resolved(precision, self.geometry), format_of(self.weights)
        if chosen is present:
            return self
        if present is not DecodePrecision.FLOAT32:
            raise ModelError(
                str(self.path),
                expected=f"weights in float32, to convert them to {chosen.value}",
                got=f"weights in {present.value}",
                cause="the model was converted before, which has rounded its weights",
                hint="convert the model that was opened in float32, or open it again",
            )
        if chosen not in self._stored:
            self._stored[chosen] = replace(self, weights=stored_weights(self.weights, self.geometry, chosen))
        return self._stored[chosen]

    @cached_property
    def _stored(self) -> dict[DecodePrecision, "Model"]:
        return {}

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
    def open(
        cls,
        path: Path,
        base: Path | None = None,
        *,
        full_context: bool = False,
        average: bool = False,
        precision: DecodePrecision = DecodePrecision.FLOAT32,
    ) -> "Model":
        """Open the newest checkpoint of a run directory, a checkpoint, a model in Hugging Face's layout, or adapters.

        Adapters are merged into the model that they belong to, which is in `base` or where they were trained from.
        With `full_context` the model of a run with adapters has the context that it had before the run. With `average`
        the weights are the moving average of those of a run. In another `precision` than float32 the model can only
        generate; matrix after matrix is converted as it is read, unless adapters are merged or the average is taken.
        Raises `ModelError` if there is none, `CheckpointError` or `TokenizerError` if its files are damaged.
        """
        folder = latest_checkpoint(path / "checkpoints") or path
        if (folder / MANIFEST_FILE).exists():
            checkpoint = Checkpoint.open(folder, for_training=False, base=base, average=average)
            if base is not None and checkpoint.base is None:
                raise _without_adapters(path)
            tokenizer, step = load_tokenizer(checkpoint.tokenizer or folder / TOKENIZER_FILE), checkpoint.step
            plain = checkpoint.base is None and not average
            weights = _converted(folder, checkpoint.geometry, precision) if plain else None
            if weights is not None:
                return cls._of(folder, checkpoint.geometry, weights, tokenizer, step, None)
            geometry, arena = checkpoint.read_model(full_context=full_context, average=average)
            merged = cls._of(folder, geometry, as_weights(geometry, arena), tokenizer, step, checkpoint.base_folder)
            return merged.stored_as(precision)
        if average and path.exists():
            raise ModelError(
                str(path),
                expected="a run with optimizer.ema, or a checkpoint of one, since --average is asked for",
                got="a folder without a checkpoint",
                hint="leave --average out",
            )
        if is_adapter_folder(folder):
            model = base_folder(folder, read_adapter_config(folder), base)
            geometry, arena = load_merged(folder, model)
            tokenizer = load_tokenizer(folder if (folder / TOKENIZER_FILE).exists() else model)
            merged = cls._of(folder, geometry, as_weights(geometry, arena), tokenizer, None, model)
            return merged.stored_as(precision)
        if base is not None and (folder / CONFIG_FILE).exists():
            raise _without_adapters(path)
        if (folder / CONFIG_FILE).exists():
            geometry = read_geometry(folder / CONFIG_FILE)
            weights = _converted(folder, geometry, precision)
            if weights is None:
                weights = as_weights(*load_model(folder))
            return cls._of(folder, geometry, weights, load_tokenizer(folder), None, None)
        raise ModelError(
            str(path),
            expected="a run directory with a checkpoint, a checkpoint, a model in Hugging Face's layout or adapters",
            got="none of them" if path.exists() else "no such folder",
            hint="pass the folder of train --out, once the run has written its first checkpoint",
        )

    @classmethod
    def _of(
        cls,
        folder: Path,
        geometry: Geometry,
        weights: ModelWeights,
        tokenizer: Tokenizer,
        step: int | None,
        base: Path | None,
    ) -> "Model":
        """Return a model with the ids that end its texts: of the folder, of the base model, or of the tokenizer."""
        ends = read_end_ids(folder) or (read_end_ids(base) if base else None) or _end_ids(tokenizer)
        return cls(folder, geometry, weights, tokenizer, step, ends, base)


def _converted(folder: Path, geometry: Geometry, precision: DecodePrecision) -> ModelWeights | None:
    """Return the weights in a folder in a number format.

    None in float32, and for a checkpoint whose files for Hugging Face's libraries do not describe all of the model.
    """
    if resolved(precision, geometry) is DecodePrecision.FLOAT32 or not _describes(folder, geometry):
        return None
    require_memory(folder, geometry, stored_bytes(geometry, precision))
    return read_stored(FolderWeights(folder, geometry), geometry, precision)


def _describes(folder: Path, geometry: Geometry) -> bool:
    """Return True if the config.json in a folder is of a model that can be read by it, and is this one."""
    try:
        return read_geometry(folder / CONFIG_FILE) == geometry
    except CheckpointError:
        return False


def _without_adapters(path: Path) -> ModelError:
    return ModelError(
        str(path),
        expected="a run with adapters, a checkpoint of one, or a folder of adapters, since --base is their model",
        got="a model without adapters",
        hint="leave --base out",
    )


def _end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset[int]() if tokenizer.end_of_text is None else frozenset({tokenizer.end_of_text.id})
