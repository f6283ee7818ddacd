"""The manifest of a prepared directory: its text, settings and files, with a checksum of each."""

import enum
import hashlib
from pathlib import Path

import msgspec

from threadloom.stages.config import SpecialTokens, TokenizerKind, TokenOrder
from threadloom.stages.data.token_file import counted_file, documents_file
from threadloom.stages.storage import atomic_write

MANIFEST_FORMAT = 2
MANIFEST_FILE = "manifest.json"


class Split(enum.Enum):
    """The parts of a text; the values are the names of the token files without `.npy`."""

    TRAIN = "train"
    VALIDATION = "validation"


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token file, as the manifest describes it."""

    file: str
    characters: int
    """Number of characters of the split, from which follow the characters per token."""
    tokens: int
    sha256: str
    """Checksum of the whole file."""
    documents: int | None = None
    """Number of documents; None for a running text."""
    documents_sha256: str | None = None
    """Checksum of the file of their positions."""
    counted_sha256: str | None = None
    """Checksum of the file of the tokens that count in the loss; None if all do."""
    sources: tuple[int, ...] = (0,)
    """Position of the first token of each source, of which there are several with `data.mixture`."""

    def is_unchanged(self, directory: Path) -> bool:
        """Return True if a directory has the files of the split as they were written; raises OSError."""
        path = directory / self.file
        return Path(self.file).name == self.file and (
            (file_sha256(path), optional_sha256(documents_file(path)), optional_sha256(counted_file(path)))
            == (self.sha256, self.documents_sha256, self.counted_sha256)
        )


class DatasetManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `manifest.json`: the text, the settings and the files of a prepared directory."""

    format: int
    text_sha256: str
    validation_sha256: str | None = None
    """Checksum of the validation text; None if a part of the text is held out."""
    tokenizer: TokenizerKind
    limit: int
    """Largest vocabulary that the tokenizer could have; `vocab_size` is the actual one."""
    vocab_size: int
    train_fraction: float
    special_tokens: SpecialTokens = SpecialTokens.TOKENS
    tokenizer_sha256: str
    token_order: TokenOrder = TokenOrder.ID
    order_sha256: str | None = None
    """Checksum of the file of the order; None for that of the ids."""
    digit_places: int = 0
    """Places that have tokens of their own for each digit; 0 without `data.digits=abacus`."""
    end_of_text: int | None = None
    """Id of the token that follows each document."""
    train: SplitRecord
    validation: SplitRecord


def read_manifest(directory: Path) -> DatasetManifest:
    """Return the manifest of a directory; raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest)


def write_manifest(directory: Path, manifest: DatasetManifest) -> None:
    """Write the manifest of a directory; raises OSError."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    atomic_write(directory / MANIFEST_FILE, content)


def file_sha256(path: Path) -> str:
    """Return the checksum of a file; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def optional_sha256(path: Path) -> str | None:
    """Return the checksum of a file, or None if it does not exist; raises OSError."""
    return file_sha256(path) if path.exists() else None
