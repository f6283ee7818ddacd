"""`training.json`: what a checkpoint is, and how to tell that each of its files, this one too, is what was written."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec

from threadloom.stages.memory import ScaleState
from threadloom.stages.models import Geometry
from threadloom.stages.storage import CheckpointError, FileRecord, write_bytes

MANIFEST_FILE = "training.json"
FORMAT = 1
"""Counts the changes after which an older reader would misunderstand a checkpoint."""

_UNSIGNED = "0" * 64  # stands in for the checksum while it is computed
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Format(msgspec.Struct):
    format: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of the file; `files` has the name of every other one of the checkpoint."""

    format: int = FORMAT
    step: _Count
    delay: _Count
    geometry: Geometry
    config: dict[str, Any]
    tokenizer: str | None
    scalers: list[ScaleState] | None = None
    """The loss scaler's state of each version, the oldest first; absent where losses are not scaled."""
    files: dict[str, FileRecord]
    checksum: str = _UNSIGNED
    """SHA-256 of the file's own text with 64 zeros in this place."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the text of the file, signed; raises `ValueError` or `TypeError` for a configuration that is not JSON."""
    content = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    content["geometry"] = asdict(manifest.geometry)
    content["files"] = {name: asdict(record) for name, record in manifest.files.items()}
    if manifest.scalers is None:
        del content["scalers"]  # as checkpoints were before there was any: their readers open it
    else:
        content["scalers"] = [asdict(state) for state in manifest.scalers]
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # The checksum is the last entry, so that its place is certain even if the configuration holds 64 zeros.
    head, _, tail = text.rpartition(_UNSIGNED)
    return (head + hashlib.sha256(text.encode()).hexdigest() + tail).encode()


def write_manifest(folder: Path, manifest: Manifest) -> FileRecord:
    """Write the file durably; raises `OSError`."""
    return write_bytes(folder / MANIFEST_FILE, encode_manifest(manifest))


def read_manifest(folder: Path, remedy: str) -> Manifest:
    """Read the file and check that it is what was written; every `CheckpointError` of it ends with `remedy`."""
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
        if (version := msgspec.json.decode(data, type=_Format).format) != FORMAT:
            raise CheckpointError(
                path,
                expected=f"a checkpoint of format {FORMAT}",
                got=f"format {version}",
                cause="another release of threadloom wrote it, or the file is damaged",
                hint=f"open it with that release, or {remedy}",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError as error:
        raise _fault(path, "a folder that holds it", "no such file", "the folder is no checkpoint", remedy) from error
    except OSError as error:
        found = error.strerror or str(error)
        raise _fault(path, "a readable file", found, "the file belongs to another user", remedy) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _fault(path, "the description of a checkpoint", str(error), "the file is damaged", remedy) from error
    _check_signature(path, data, manifest.checksum, remedy)
    _check_names(path, manifest, remedy)
    return manifest


def _check_signature(path: Path, data: bytes, checksum: str, remedy: str) -> None:
    head, _, tail = data.rpartition(checksum.encode())
    actual = hashlib.sha256(head + _UNSIGNED.encode() + tail).hexdigest()
    if actual != checksum:
        cause = "the file was changed or damaged after it was written"
        raise _fault(path, f"SHA-256 {checksum}", f"SHA-256 {actual}", cause, remedy)


def _check_names(path: Path, manifest: Manifest, remedy: str) -> None:
    """Refuse a name that leads out of the folder: the file may come from anywhere."""
    for name in manifest.files:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise _fault(path, "plain names of files", repr(name), "the file was made by hand", remedy)
    if manifest.tokenizer is not None and manifest.tokenizer not in manifest.files:
        found = f"{manifest.tokenizer!r} without one"
        raise _fault(path, "a record of the tokenizer's file", found, "the file was made by hand", remedy)


def _fault(path: Path, needed: str, found: str, cause: str, remedy: str) -> CheckpointError:
    return CheckpointError(path, expected=needed, got=found, cause=cause, hint=remedy)


def as_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `config` as JSON gives it back; raises `ValueError` or `TypeError` if JSON cannot hold it."""
    copy = json.loads(json.dumps(config, allow_nan=False))
    if not isinstance(copy, dict):
        raise TypeError(f"a checkpoint's configuration needs to be a mapping, not {type(config).__name__}")
    return copy
