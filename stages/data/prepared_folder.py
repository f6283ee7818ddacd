"""Folders of `threadloom prepare`: a prepared text with its settings, which any number of runs may train on.

A run has the files of the folder in its own folder `data`, as links if both are on one file system. So the run can be
resumed, moved and exported when the prepared folder is gone, and starting it takes no time.
"""

import shutil
from pathlib import Path

import msgspec

from threadloom.stages.config import ConfigError, DataConfig, TokenizerKind
from threadloom.stages.data.encoding.split_files import link_file
from threadloom.stages.data.manifest import MANIFEST_FILE, DatasetManifest, read_manifest
from threadloom.stages.data.preparation import digit_places, preparing
from threadloom.stages.data.pretrained_tokenizer import is_prepared_from_another
from threadloom.stages.data.text_paths import absolute_text, text_path
from threadloom.stages.data.text_record import SOURCES_FILE
from threadloom.stages.data.token_file import DataError, counted_file, documents_file
from threadloom.stages.data.token_order import ORDER_FILE
from threadloom.stages.data.tokenizer_files import COMPANIONS, MODEL_CONFIG_FILE, TEMPLATES_FOLDER
from threadloom.stages.data.vocabulary_files import TOKENIZER_FILE
from threadloom.stages.storage import atomic_write, make_directory

SETTINGS_FILE = "settings.json"


class PreparedSettings(msgspec.Struct, frozen=True):
    """The content of the file: the settings that a text was prepared with."""

    data: DataConfig
    vocab_size: int | None = None
    """`model.vocab_size`, up to which a tokenizer was trained."""


def write_settings(folder: Path, data: DataConfig, vocab_size: int | None) -> None:
    """Write the settings of a prepared folder; raises OSError."""
    content = msgspec.json.encode(PreparedSettings(data, vocab_size))
    atomic_write(folder / SETTINGS_FILE, msgspec.json.format(content, indent=1) + b"\n")


def read_settings(folder: Path) -> PreparedSettings:
    """Return the settings of a prepared folder, with `data.prepared`; raises DataError for another folder."""
    try:
        read_manifest(folder)
        found = msgspec.json.decode((folder / SETTINGS_FILE).read_bytes(), type=PreparedSettings)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(
            str(folder),
            expected="a folder that `threadloom prepare` has completed",
            got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
            hint="pass the --out of `threadloom prepare`; start it again if it was stopped",
        ) from error
    data = msgspec.structs.replace(found.data, prepared=absolute_text(folder))
    return msgspec.structs.replace(found, data=data)


def prepared_vocabulary(prepared: str) -> int:
    """Return the number of tokens of the tokenizer of `data.prepared`; raises DataError as `read_settings`."""
    folder = text_path(prepared)
    read_settings(folder)
    return read_manifest(folder).vocab_size


def require_tokenizer_of(data: DataConfig, folder: Path) -> None:
    """Raise ConfigError if `data` asks for an existing tokenizer and a folder was prepared with another."""
    if data.tokenizer is TokenizerKind.PRETRAINED and is_prepared_from_another(data, folder / TOKENIZER_FILE):
        raise ConfigError(
            "data.prepared",
            expected=f"a text prepared with the tokenizer of {data.tokenizer_path}",
            got=f"{folder}, with another one",
            hint=f"prepare the text with --tokenizer {data.tokenizer_path}",
        )


def copy_prepared(data: DataConfig, directory: Path) -> DatasetManifest:
    """Put the files of `data.prepared` into a directory, unless they are there, and return their manifest.

    A directory that has them does not need the folder any more. Raises ConfigError for settings that the folder was not
    prepared with, DataError for a folder that is not prepared.
    """
    folder = text_path(data.prepared)
    with preparing(directory):
        if (directory / MANIFEST_FILE).exists() and not (folder / MANIFEST_FILE).exists():
            return read_manifest(directory)
        read_settings(folder)
        manifest = read_manifest(folder)
        _require_settings(data, manifest, folder)
        if (directory / MANIFEST_FILE).exists() and read_manifest(directory) == manifest:
            return manifest
        (directory / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(directory / TEMPLATES_FOLDER, ignore_errors=True)
        for name in [*_names(folder, manifest), MANIFEST_FILE]:
            if (folder / name).exists():
                make_directory((directory / name).parent)
                link_file(folder / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
        return manifest


def _names(folder: Path, manifest: DatasetManifest) -> list[str]:
    """Return the names of the files that a prepared folder may have, without that of the manifest."""
    splits = [folder / record.file for record in (manifest.train, manifest.validation)]
    tokens = [path.name for split in splits for path in (split, documents_file(split), counted_file(split))]
    templates = [f"{TEMPLATES_FOLDER}/{path.name}" for path in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))]
    return [*tokens, TOKENIZER_FILE, ORDER_FILE, SOURCES_FILE, MODEL_CONFIG_FILE, *COMPANIONS, *templates]


def _require_settings(data: DataConfig, manifest: DatasetManifest, folder: Path) -> None:
    for name, wanted, found in (
        ("tokenizer", data.tokenizer, manifest.tokenizer),
        ("special_tokens", data.special_tokens, manifest.special_tokens),
        ("train_fraction", data.train_fraction, manifest.train_fraction),
        ("token_order", data.token_order, manifest.token_order),
        ("digit_places", digit_places(data), manifest.digit_places),
    ):
        if wanted != found:
            shown, got = (getattr(value, "value", value) for value in (found, wanted))
            raise ConfigError(
                f"data.{name}",
                expected=f"{shown}, with which {folder} was prepared",
                got=f"{got}",
                hint="leave the setting out, or prepare the text again with it",
            )
