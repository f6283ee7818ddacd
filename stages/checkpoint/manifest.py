"""The manifest of a checkpoint, `training.json`.

It holds step, τ, geometry, the run's configuration, the loss scaler's state of each version if losses are scaled, the
model that adapters belong to, and the size and SHA-256 of every other file; its last entry is its own SHA-256.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec

from threadloom.stages.checkpoint.base_model import BaseModel
from threadloom.stages.checkpoint.format import FORMATS
from threadloom.stages.memory import GuardState, ScaleState
from threadloom.stages.storage import CheckpointError, FileDigest, write_bytes

MANIFEST_FILE = "training.json"

_NO_CHECKSUM = "0" * 64  # placeholder while the checksum is computed
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _FormatOnly(msgspec.Struct):
    format: int


class CheckpointManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of the file."""

    format: int
    """Key in `FORMATS`."""
    step: _Count
    delay: _Count
    geometry: dict[str, Any]
    """The sizes of the model, as `geometry_to_json` records them."""
    config: dict[str, Any]
    tokenizer: str | None
    """Name of the tokenizer's file."""
    scalers: list[ScaleState] | None = None
    """State of the loss scaler for each version, the oldest first; absent if losses are not scaled."""
    guard: GuardState | None = None
    """State of the guard against spikes; absent without one."""
    base: BaseModel | None = None
    """The frozen model of a run with adapters; absent in the others."""
    embedding: str | None = None
    """Digest of the function from factors to the token embedding; absent in the runs that train the embedding."""
    files: dict[str, FileDigest]
    """Name → digest of every other file of the checkpoint."""
    checksum: str = _NO_CHECKSUM
    """SHA-256 of the text of this file with 64 zeros in place of the checksum."""


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    """Return the text of the file with its checksum; raises `ValueError` or `TypeError` if JSON cannot hold it."""
    content = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    content["files"] = {name: asdict(digest) for name, digest in manifest.files.items()}
    if manifest.scalers is None:
        del content["scalers"]  # releases without loss scaling refuse unknown entries
    else:
        content["scalers"] = [asdict(state) for state in manifest.scalers]
    if manifest.guard is None:
        del content["guard"]
    else:
        content["guard"] = asdict(manifest.guard)
    if manifest.embedding is None:
        del content["embedding"]
    if manifest.base is None:
        del content["base"]
    else:
        content["base"] = asdict(manifest.base)
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # The checksum is the last entry: its place is known even if the configuration contains 64 zeros.
    head, _, tail = text.rpartition(_NO_CHECKSUM)
    return (head + hashlib.sha256(text.encode()).hexdigest() + tail).encode()


def write_manifest(directory: Path, manifest: CheckpointManifest) -> FileDigest:
    """Write the file durably; raises `OSError`."""
    return write_bytes(directory / MANIFEST_FILE, encode_manifest(manifest))


def read_manifest(directory: Path, hint: str) -> CheckpointManifest:
    """Read and verify the file; raises `CheckpointError` with `hint`."""
    path = directory / MANIFEST_FILE
    try:
        data = path.read_bytes()
        number = msgspec.json.decode(data, type=_FormatOnly).format
        if number not in FORMATS:
            raise CheckpointError(
                path,
                expected=f"a checkpoint of format {' or '.join(map(str, FORMATS))}",
                got=f"format {number}",
                cause="another release of threadloom wrote it, or the file is damaged",
                hint=f"open it with that release, or {hint}",
            )
        manifest = msgspec.json.decode(data, type=CheckpointManifest)
    except FileNotFoundError as error:
        cause = "the directory is not a checkpoint"
        raise CheckpointError(path, expected="a file", got="no such file", cause=cause, hint=hint) from error
    except OSError as error:
        got = error.strerror or str(error)
        raise CheckpointError(path, expected="a readable file", got=got, hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        expected = "the manifest of a checkpoint"
        raise CheckpointError(
            path, expected=expected, got=str(error), cause="the file is damaged", hint=hint
        ) from error
    _verify_checksum(path, data, manifest.checksum, hint)
    _verify_names(path, manifest, hint)
    return manifest


def _verify_checksum(path: Path, data: bytes, checksum: str, hint: str) -> None:
    head, _, tail = data.rpartition(checksum.encode())
    actual = hashlib.sha256(head + _NO_CHECKSUM.encode() + tail).hexdigest()
    if actual != checksum:
        raise CheckpointError(
            path,
            expected=f"SHA-256 {checksum}",
            got=f"SHA-256 {actual}",
            cause="the file was modified or damaged after it was written",
            hint=hint,
        )


def _verify_names(path: Path, manifest: CheckpointManifest, hint: str) -> None:
    """Raise `CheckpointError` for a file name that leads out of the directory: the manifest is untrusted."""
    for name in (*manifest.files, *(manifest.base.files if manifest.base else ())):
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            expected = "names of files in the directory"
            raise CheckpointError(path, expected=expected, got=repr(name), cause="the file was edited", hint=hint)
    if manifest.tokenizer is not None and manifest.tokenizer not in manifest.files:
        raise CheckpointError(
            path,
            expected="a record of the tokenizer file",
            got=f"{manifest.tokenizer!r} without one",
            cause="the file was edited",
            hint=hint,
        )


def json_copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` converted to JSON values and back; raises `ValueError` or `TypeError` if JSON cannot hold it."""
    copy = json.loads(json.dumps(config, allow_nan=False))
    if not isinstance(copy, dict):
        raise TypeError(f"the configuration of a checkpoint must be a mapping, not {type(config).__name__}")
    return copy
