"""The named validation sets of a run (`evaluation.sets`), encoded with its tokenizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from threadloom.stages.config import DataConfig
from threadloom.stages.data.dataset import Dataset
from threadloom.stages.data.encoding.journal import PreparationFolder
from threadloom.stages.data.encoding.pipeline import encode_units
from threadloom.stages.data.encoding.units import Unit, document_units, text_units
from threadloom.stages.data.sources.registry import reading_of
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.token_file import DataError, TokenFile, require_window, token_type
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.storage import DiskFullError

SETS_FOLDER = "sets"


def prepare_sets(sets: Mapping[str, str], data: DataConfig, dataset: Dataset, directory: Path) -> dict[str, TokenFile]:
    """Return name → token file of the texts of `sets`, name → path, written to a folder in a prepared directory.

    Records become documents as those of `data`, and rows have the order of `dataset`. Raises TextError, TokenizerError,
    DiskFullError, and DataError for a text without a window or a file that cannot be written.
    """
    tokenizer = dataset.tokenizer.with_special_tokens(data.special_tokens)
    return {
        name: _prepared(name, read_text([path], reading=reading_of(data)), tokenizer, dataset, directory / SETS_FOLDER)
        for name, path in sets.items()
    }


def _prepared(name: str, text: Text, tokenizer: Tokenizer, dataset: Dataset, directory: Path) -> TokenFile:
    def units() -> Iterator[Unit]:
        if text.documents is None:
            return text_units(0, tokenizer, text.chunks())
        return document_units(0, tokenizer, text.parts())

    kind, context = token_type(tokenizer.vocab_size), dataset.train.context
    folder = PreparationFolder(directory, [name, text.checksum()])
    try:
        folder.remove()  # what an interrupted start has left may be of another tokenizer
        (written,) = encode_units(units, [f"{name}.npy"], tokenizer, kind, folder, text.characters)
        require_window(written.tokens, context, directory / written.path.name)
        written.publish(directory, None if dataset.order is None else dataset.order.rows)
        folder.remove()
    except DiskFullError:
        raise
    except OSError as error:
        raise DataError(
            str(error.filename or directory),
            expected=f"the tokens of the validation set {name}, written to {directory}",
            got=error.strerror or type(error).__name__,
            cause="the directory is not writable",
            hint="choose another directory",
        ) from error
    return TokenFile.open(directory / f"{name}.npy", tokenizer.vocab_size, context)
