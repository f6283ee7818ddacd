"""From text to token files: tokenised once, split, written whole or not at all, used again while nothing has changed.

A prepared directory holds `train.npy`, `validation.npy`, `tokenizer.json` and `manifest.json`. Each file is written
aside, synced and renamed, the manifest last; it carries the checksums of the others, so that a directory left half
written, or with a damaged file, is made anew instead of used.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from numpy.lib import format as npy
from numpy.typing import NDArray

from threadloom.stages.config import Config, InputError, TokenizerKind
from threadloom.stages.data.token_file import DataError, TokenFile, token_type
from threadloom.stages.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from threadloom.stages.storage import atomic_write

MANIFEST_FORMAT = 1


class Split(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the token files."""

    file: str
    characters: int
    """Of the text that the tokens stand for; with `tokens` it gives the characters a token."""
    tokens: int
    sha256: str
    """Of the whole file."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was prepared, from which text and with which settings."""

    format: int
    text_sha256: str
    tokenizer: TokenizerKind
    limit: int
    """The most tokens that the tokenizer could have; it has `vocab_size`."""
    vocab_size: int
    train_fraction: float
    tokenizer_sha256: str
    train: Split
    validation: Split


@dataclass(frozen=True)
class Dataset:
    """A prepared text: open token files and the tokenizer that made them."""

    tokenizer: Tokenizer
    tokenizer_path: Path
    train: TokenFile
    validation: TokenFile
    manifest: Manifest
    reused: bool
    """Whether an up-to-date directory was found, so that nothing was tokenised."""


def prepare(config: Config, text: str, directory: Path) -> Dataset:
    """Return the dataset of a text, prepared in `directory` (made if need be) unless it is there already.

    The text is split by characters, the first `data.train_fraction` for training and the rest for validation, and each
    part tokenised by itself. A character tokenizer's alphabet is that of the whole text (as nanoGPT's), a BPE tokenizer
    is trained on the training part alone. Ids are below the tokenizer's vocabulary. Works on resolved configurations
    and on those with an open `model.vocab_size` alike, with the same result.

    DataError where the text is empty, a part is shorter than a context and a token, or a file cannot be written.
    """
    if not text:
        raise DataError(
            str(directory),
            expected="a text to tokenise",
            got="no character",
            cause="the files are empty",
            hint="give a text with --text FILE_OR_DIR",
        )
    cut = int(len(text) * config.data.train_fraction)
    checksum = _checksum(text)
    limit = _limit(config, text)
    ready = _open_prepared(config, directory, checksum, limit)
    if ready is not None:
        return ready
    learned = text[:cut] if config.data.tokenizer is TokenizerKind.BPE else text
    tokenizer = train_tokenizer(config.data, config.model.vocab_size, learned)
    kind = token_type(tokenizer.vocab_size)
    parts = {"train": text[:cut], "validation": text[cut:]}
    ids = {name: tokenizer.encode(part).astype(kind) for name, part in parts.items()}
    for name, array in ids.items():  # what is too short is refused before anything is written
        TokenFile(array, tokenizer.vocab_size, config.model.context, directory / f"{name}.npy")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "manifest.json").unlink(missing_ok=True)
        splits = {name: _write_split(directory, name, array, len(parts[name])) for name, array in ids.items()}
        path = directory / "tokenizer.json"
        manifest = Manifest(
            format=MANIFEST_FORMAT,
            text_sha256=checksum,
            tokenizer=config.data.tokenizer,
            limit=limit,
            vocab_size=tokenizer.vocab_size,
            train_fraction=config.data.train_fraction,
            tokenizer_sha256=_write_tokenizer(path, tokenizer),
            **splits,
        )
        encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        atomic_write(directory / "manifest.json", encoded + b"\n")
    except OSError as error:
        size = sum(array.nbytes for array in ids.values())
        raise DataError(
            str(error.filename or directory),
            expected=f"{size:,} bytes of token files written to {directory}",
            got=error.strerror or type(error).__name__,
            cause="the disk is full, or the directory may not be written",
            hint="free some space or name another directory; nothing that was complete before is used half",
        ) from error
    return _opened(config, directory, manifest, tokenizer, reused=False)


def require_same_text(directory: Path, text: str) -> None:
    """Raise DataError if `directory` was prepared from another text; one that is not whole says nothing."""
    try:
        prepared = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest).text_sha256
    except (OSError, msgspec.DecodeError):
        return
    if prepared != _checksum(text):
        raise DataError(
            str(directory),
            expected="the text that the run was started with",
            got=f"another one, of {len(text):,} characters",
            cause="a file of the text was changed, added or removed, or --text names another",
            hint="give the same text, or start a new run with another --out",
        )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _limit(config: Config, text: str) -> int:
    """The most tokens that the tokenizer can have; for characters no more than the text has different ones."""
    match config.data.tokenizer:
        case TokenizerKind.BYTES:
            return 256
        case TokenizerKind.BPE:
            return config.model.vocab_size or 0
        case TokenizerKind.CHARACTERS:
            return min(config.data.alphabet, config.model.vocab_size or config.data.alphabet, len(set(text)))


def _open_prepared(config: Config, directory: Path, checksum: str, limit: int) -> Dataset | None:
    """The dataset that lies in the directory, or None where there is none that is whole and up to date."""
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=Manifest)
        found = (manifest.format, manifest.text_sha256, manifest.tokenizer, manifest.limit, manifest.train_fraction)
        data = config.data
        if found != (MANIFEST_FORMAT, checksum, data.tokenizer, limit, data.train_fraction):
            return None
        for split in (manifest.train, manifest.validation):
            if Path(split.file).name != split.file or _sha256(directory / split.file) != split.sha256:
                return None
        if _sha256(directory / "tokenizer.json") != manifest.tokenizer_sha256:
            return None
        tokenizer = load_tokenizer(directory / "tokenizer.json")
        if tokenizer.vocab_size != manifest.vocab_size:
            return None
    except (OSError, msgspec.MsgspecError, InputError, UnicodeDecodeError):
        return None
    return _opened(config, directory, manifest, tokenizer, reused=True)


def _opened(config: Config, directory: Path, manifest: Manifest, tokenizer: Tokenizer, reused: bool) -> Dataset:
    train, validation = (
        TokenFile.open(directory / split.file, manifest.vocab_size, config.model.context)
        for split in (manifest.train, manifest.validation)
    )
    return Dataset(tokenizer, directory / "tokenizer.json", train, validation, manifest, reused)


def _write_split(directory: Path, name: str, ids: NDArray[Any], characters: int) -> Split:
    path = directory / f"{name}.npy"

    def write(file: BinaryIO) -> None:  # not np.save: ndarray.tofile says nothing when a full disk cuts it short
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(ids))
        file.write(ids.data)

    atomic_write(path, write)
    return Split(file=path.name, characters=characters, tokens=len(ids), sha256=_sha256(path))


def _write_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    aside = path.with_name(f".{path.name}.{os.getpid()}.made")
    try:
        tokenizer.save(aside)
        content = aside.read_bytes()
    finally:
        aside.unlink(missing_ok=True)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
