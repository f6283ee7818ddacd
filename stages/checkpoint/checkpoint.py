"""Checkpoints: whole or absent, the same bits when read back, and never a pickle.

`checkpoints/step-NNNNNN/` holds

===================== ==================================================================================================
model.safetensors     version `step` of the weights, in Hugging Face's layout (`huggingface`)
config.json           its sizes, for `GPT2LMHeadModel.from_pretrained`
optimizer.safetensors AdamW's `m.*` and `v.*`, under our names
versions.safetensors  `<version>.*`: the versions max(step - τ, 0) to step - 1; absent when there are none
training.json         step, τ, geometry, the run's configuration, where losses are scaled the scaler's state of each
                      version, size and SHA-256 of every other file, and of itself
the tokenizer's file  under its own name
===================== ==================================================================================================

How that holds: everything is written in `.step-NNNNNN.partial-…`, every file and then the folder is synced, and one
rename, synced in turn, gives it its name. A folder with such a name has therefore been whole. An older checkpoint
leaves by a rename too, before its files go, and only after the new one stands. One of the same step is set aside as
`.step-NNNNNN.replaced-…` until its successor has the name; `remove_leftovers` puts it back if the writer died between.

One process at a time writes in a folder, and calls `remove_leftovers` when it starts. Reading takes no lock: a
checkpoint never changes once it has its name.
"""

import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.huggingface import CONFIG_FILE, MODEL_FILE, read_model, write_model
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE, Manifest, as_config, read_manifest, write_manifest
from threadloom.stages.memory import ScaleState
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.storage import (
    CheckpointError,
    FileRecord,
    copy_file,
    explain_fault,
    open_tensors,
    record_file,
    require_space,
    sync_folder,
    write_tensors,
)

Floats = NDArray[np.float32]

OPTIMIZER_FILE = "optimizer.safetensors"
VERSIONS_FILE = "versions.safetensors"
OWN_FILES = frozenset({MODEL_FILE, CONFIG_FILE, OPTIMIZER_FILE, VERSIONS_FILE, MANIFEST_FILE})

_FINISHED = re.compile(r"step-(\d{6,})")
_PARTIAL = re.compile(r"\.step-\d{6,}\.partial-[0-9a-f]+")
_REPLACED = re.compile(r"\.(step-\d{6,})\.replaced-[0-9a-f]+")
_SMALL_FILES = 1 << 20  # room for config.json, training.json and the folder itself


def kept_versions(step: int, delay: int) -> range:
    """Return the versions of the weights that a run with delay τ may still read after `step` updates."""
    return range(max(step - delay, 0), step + 1)


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on from `step` on the same trajectory.

    The arrays are read while the checkpoint is written and must not change meanwhile: hold leases on the versions, and
    copies of the moments or the optimizer's pause.
    """

    step: int
    delay: int
    versions: Mapping[int, Arena]
    """`kept_versions(step, delay)`, no more and no fewer, `step` itself among them."""
    m: Arena
    v: Arena
    config: Mapping[str, Any]
    """The run's resolved configuration, as JSON can hold it."""
    geometry: Geometry
    scalers: Mapping[int, ScaleState] = field(default_factory=dict)
    """The loss scaler's state of each of `versions`; empty where losses are not scaled."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a state from which no run could go on."""
        needed = list(kept_versions(self.step, self.delay))
        if self.step < 0 or self.delay < 0 or sorted(self.versions) != needed:
            raise ValueError(
                f"a checkpoint of step {self.step} with delay {self.delay} needs the versions {needed}, "
                f"got {sorted(self.versions)}"
            )
        if self.scalers and sorted(self.scalers) != needed:
            raise ValueError(f"the loss scaler's states must be those of versions {needed}, got {sorted(self.scalers)}")
        shapes = parameter_shapes(self.geometry)
        for label, arena in {"m": self.m, "v": self.v, **{f"version {k}": a for k, a in self.versions.items()}}.items():
            if {name: view.shape for name, view in arena.items()} != shapes:
                raise ValueError(f"the arena of {label} does not have the shapes of {self.geometry}")

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, as they lie in memory."""
        return sum(arena.nbytes for arena in (self.m, self.v, *self.versions.values()))


def save_checkpoint(folder: Path, state: TrainingState, tokenizer: Path | None, keep: int) -> Path:
    """Write a checkpoint into `folder`, which is made if need be, and keep only the newest `keep` there (0: all).

    `tokenizer` is a file to be copied beside the model. Returns the checkpoint's path, when it is on the disk. On
    failure nothing is left of it and the others stand: `CheckpointError` for a full disk, a missing permission and the
    like, `ValueError` or `TypeError` for arguments that cannot be saved.
    """
    if keep < 0:
        raise ValueError(f"keep needs to be at least 1, or 0 for all, got {keep}")
    if tokenizer is not None and tokenizer.name in OWN_FILES:
        raise ValueError(f"the tokenizer's file cannot be called {tokenizer.name}: a checkpoint has one of that name")
    config = as_config(state.config)
    target = folder / f"step-{state.step:06d}"
    partial = folder / f".{target.name}.partial-{secrets.token_hex(4)}"
    needed = state.nbytes + _SMALL_FILES
    try:
        _make_folder(folder)
        require_space(folder, needed)
        partial.mkdir()
        files = _write_files(partial, state, tokenizer)
        manifest = Manifest(
            step=state.step,
            delay=state.delay,
            geometry=state.geometry,
            config=config,
            tokenizer=tokenizer.name if tokenizer else None,
            scalers=[state.scalers[version] for version in sorted(state.scalers)] or None,
            files=files,
        )
        write_manifest(partial, manifest)
        _publish(partial, target)
    except BaseException as error:
        with suppress(OSError):
            remove_leftovers(folder)
        if isinstance(error, OSError):
            raise explain_fault(error, folder, needed) from error
        raise
    _retain(folder, target, keep)
    return target


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _write_files(partial: Path, state: TrainingState, tokenizer: Path | None) -> dict[str, FileRecord]:
    """Write every file but the manifest, durably, and return what is in each."""
    files = write_model(partial, state.versions[state.step], state.geometry)
    moments = _prefixed("m", state.m) | _prefixed("v", state.v)
    files[OPTIMIZER_FILE] = write_tensors(partial / OPTIMIZER_FILE, moments, {})
    older: dict[str, Floats] = {}
    for version in kept_versions(state.step, state.delay)[:-1]:
        older |= _prefixed(str(version), state.versions[version])
    if older:
        files[VERSIONS_FILE] = write_tensors(partial / VERSIONS_FILE, older, {})
    if tokenizer:
        files[tokenizer.name] = copy_file(tokenizer, partial / tokenizer.name)
    return files


def _prefixed(prefix: str, arena: Mapping[str, Floats]) -> dict[str, Floats]:
    return {f"{prefix}.{name}": view for name, view in arena.items()}


def _publish(partial: Path, target: Path) -> None:
    """Give a complete folder its name; at every moment either it or what had the name before can be found."""
    sync_folder(partial)
    replaced = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}") if target.exists() else None
    if replaced:
        target.rename(replaced)
    partial.rename(target)
    sync_folder(target.parent)
    if replaced:
        _discard(replaced)


def _retain(folder: Path, newest: Path, keep: int) -> None:
    """Remove all finished checkpoints but the last `keep` (none if that is 0), and never the one just written."""
    for old in finished_checkpoints(folder)[:-keep] if keep else ():
        if old == newest:
            continue
        aside = old.with_name(f".{old.name}.partial-{secrets.token_hex(4)}")
        try:
            old.rename(aside)
            sync_folder(folder)
        except OSError as error:  # the new one stands, and training goes on
            logger.warning("{}: an old checkpoint could not be removed: {}", old, error)
        else:
            _discard(aside)


def _discard(aside: Path) -> None:
    """Remove a checkpoint that has lost its name; what cannot be removed now is a leftover for the next start."""
    try:
        shutil.rmtree(aside)
    except OSError as error:
        logger.warning("{}: an old checkpoint could not be removed: {}", aside, error)


def finished_checkpoints(folder: Path) -> list[Path]:
    """Return the paths `step-NNNNNN` in `folder`, the lowest step first; none if there is no such folder."""
    found = [(int(match[1]), path) for path, match in _matching(folder, _FINISHED)]
    return [path for _, path in sorted(found)]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, or None if there is none.

    Having the name means that it was whole once. If its files were damaged since, `Checkpoint.open` says so, with the
    checkpoint before it as the remedy: going back on its own would hide a failing disk, so that step is a person's.
    """
    finished = finished_checkpoints(folder)
    return finished[-1] if finished else None


def remove_leftovers(folder: Path) -> list[str]:
    """Clear away what a writer that was killed left in `folder`; returns a sentence for each thing done.

    For the one process that writes there, before its first checkpoint. A checkpoint that was set aside for its
    successor gets its name back if the successor never came. Raises `OSError`.
    """
    done: list[str] = []
    for path, match in _matching(folder, _REPLACED):
        target = folder / match[1]
        if target.exists():
            shutil.rmtree(path)
            done.append(f"removed {path.name}, which {target.name} replaces")
        else:
            path.rename(target)
            sync_folder(folder)
            done.append(f"put {target.name} back, whose successor was not finished")
    for path, _ in _matching(folder, _PARTIAL):
        shutil.rmtree(path)
        done.append(f"removed the unfinished {path.name}")
    return done


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Return the folders in `folder` whose whole name matches."""
    if not folder.is_dir():
        return []
    found = ((path, pattern.fullmatch(path.name)) for path in folder.iterdir() if path.is_dir())
    return [(path, match) for path, match in found if match]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be what was written; made by `open`."""

    path: Path
    step: int
    delay: int
    config: Mapping[str, Any]
    geometry: Geometry
    tokenizer: Path | None
    """The copy of the tokenizer's file, if one was saved."""
    scalers: Mapping[int, ScaleState] = field(default_factory=dict)
    """The loss scaler's state of each of `versions`; empty where the run scaled no losses."""

    @classmethod
    def open(cls, path: Path, *, for_training: bool = True) -> Self:
        """Check a checkpoint's files, size and SHA-256 of each, and return what it is; raises `CheckpointError`.

        Without `for_training` only the model, its configuration and the tokenizer are looked at: enough to sample or
        evaluate, and other files may then be missing.
        """
        remedy = _remedy(path)
        manifest = read_manifest(path, remedy)
        needed = _needed_files(manifest)
        if missing := needed - set(manifest.files):
            found = f"none of {', '.join(sorted(missing))}"
            _fail(path / MANIFEST_FILE, f"a record of {len(needed)} files", found, "it was made by hand", remedy)
        for name in sorted(needed if for_training else needed - {OPTIMIZER_FILE, VERSIONS_FILE}):
            _verify(path / name, manifest.files[name], remedy)
        tokenizer = path / manifest.tokenizer if manifest.tokenizer else None
        scalers = {state.version: state for state in manifest.scalers or ()}
        versions = list(kept_versions(manifest.step, manifest.delay))
        if scalers and list(scalers) != versions:
            found = f"those of versions {list(scalers)}"
            _fail(path / MANIFEST_FILE, f"scalers of versions {versions}", found, "it was made by hand", remedy)
        return cls(path, manifest.step, manifest.delay, manifest.config, manifest.geometry, tokenizer, scalers)

    @property
    def versions(self) -> range:
        """The versions of the weights in it; the last is `step`."""
        return kept_versions(self.step, self.delay)

    def read_weights(self, version: int, arena: Mapping[str, Floats]) -> None:
        """Read one of `versions` into an arena of this geometry, bit for bit."""
        self._require_shapes(arena)
        if version == self.step:
            read_model(self.path / MODEL_FILE, self.geometry, arena)
        elif version in self.versions:
            self._read(VERSIONS_FILE, {str(k): arena if k == version else None for k in self.versions[:-1]})
        else:
            needed = f"version {version} of the weights"
            cause = "the run's delay is another than the checkpoint's"
            remedy = f"resume with delay={self.delay}"
            _fail(self.path, needed, f"versions {list(self.versions)}", cause, remedy)

    def read_moments(self, m: Mapping[str, Floats], v: Mapping[str, Floats]) -> None:
        """Read AdamW's moments into arenas of this geometry, bit for bit."""
        self._require_shapes(m)
        self._require_shapes(v)
        self._read(OPTIMIZER_FILE, {"m": m, "v": v})

    def _read(self, name: str, arenas: Mapping[str, Mapping[str, Floats] | None]) -> None:
        """Read the tensors `<prefix>.*` of a file into the arena of each prefix; those of None are only checked."""
        shapes = parameter_shapes(self.geometry)
        with open_tensors(self.path / name) as file:
            needed = {f"{prefix}.{tensor}": shape for prefix in arenas for tensor, shape in shapes.items()}
            file.require(needed, cause="the file is of another run")
            for prefix, arena in arenas.items():
                if arena is None:
                    continue
                for tensor in shapes:
                    file.read(f"{prefix}.{tensor}", arena[tensor])

    def _require_shapes(self, arena: Mapping[str, Floats]) -> None:
        for name, shape in parameter_shapes(self.geometry).items():
            found = arena[name].shape if name in arena else "no such tensor"
            if found != shape:
                needed = f"the sizes that the run was configured with ({name}: {found})"
                cause = "the configuration is of another model"
                remedy = "resume with the run's own config.json, or start a new run"
                _fail(self.path, needed, f"{self.geometry} ({name}: {shape})", cause, remedy)


def _needed_files(manifest: Manifest) -> set[str]:
    older = {VERSIONS_FILE} if len(kept_versions(manifest.step, manifest.delay)) > 1 else set()
    tokenizer = {manifest.tokenizer} if manifest.tokenizer else set()
    return {MODEL_FILE, CONFIG_FILE, OPTIMIZER_FILE} | older | tokenizer


def _verify(path: Path, written: FileRecord, remedy: str) -> None:
    """Raise `CheckpointError` unless the file is what was written."""
    try:
        size = path.stat().st_size
        found = record_file(path) if size == written.size else None
    except FileNotFoundError:
        _fail(path, f"a file of {written.size:,} bytes", "no such file", "it was removed, or not copied along", remedy)
    except OSError as error:
        _fail(path, "a readable file", error.strerror or str(error), "it belongs to another user", remedy)
    if found is None:
        cause = "the file was truncated, or copied in part" if size < written.size else "the file was changed"
        _fail(path, f"{written.size:,} bytes", f"{size:,} bytes", cause, remedy)
    if found != written:
        cause = "the file was changed or damaged after it was written"
        _fail(path, f"SHA-256 {written.sha256}", f"SHA-256 {found.sha256}", cause, remedy)


def _remedy(path: Path) -> str:
    """Return what a person can do about a damaged checkpoint."""
    finished = finished_checkpoints(path.parent)
    older = finished[: finished.index(path)] if path in finished else finished
    instead = f"remove {path} and go on from {older[-1].name}" if older else "begin a new run: there is no earlier one"
    return f"restore the file from a copy, or {instead}"


def _fail(path: Path, needed: str, found: str, cause: str, remedy: str) -> NoReturn:
    raise CheckpointError(path, expected=needed, got=found, cause=cause, hint=remedy)
