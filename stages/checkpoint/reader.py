"""Reading checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.base_model import BaseModel
from threadloom.stages.checkpoint.format import FORMATS, CheckpointFormat, Weights, can_hold
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE, CheckpointManifest, read_manifest
from threadloom.stages.checkpoint.merging import read_merged
from threadloom.stages.checkpoint.safetensors_format import OPTIMIZER_FILE
from threadloom.stages.checkpoint.state import BASES, kept_versions
from threadloom.stages.memory import GuardState, ScaleState
from threadloom.stages.models import (
    Geometry,
    UnsupportedModelError,
    geometry_from_json,
    parameter_shapes,
    token_embedding,
)
from threadloom.stages.storage import (
    CONFIG_FILE,
    CheckpointError,
    FileDigest,
    digest_file,
    finished_checkpoints,
    read_geometry,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified; created by `open`."""

    path: Path
    step: int
    delay: int
    config: Mapping[str, Any]
    """Resolved configuration of the run, as JSON values."""
    geometry: Geometry
    tokenizer: Path | None
    """Copy of the tokenizer file, if one was saved."""
    scalers: Mapping[int, ScaleState]
    """State of the loss scaler for each of `versions`; empty if the run does not scale losses."""
    format: int
    """Key in `FORMATS`."""
    guard: GuardState = field(default_factory=GuardState)
    """State of the guard against spikes; empty without one."""
    base: BaseModel | None = None
    """The frozen model of a run with adapters, whose files have been verified too."""
    base_folder: Path | None = None
    """Folder of that model."""
    embedding: str | None = None
    """Digest of the function from factors to the token embedding, of a run that trains factors."""

    @classmethod
    def open(cls, path: Path, *, for_training: bool = True, base: Path | None = None, average: bool = False) -> Self:
        """Verify size and SHA-256 of each file of a checkpoint, and return its description.

        Without `for_training` only the newest weights, their configuration and the tokenizer are verified, which is
        enough to sample or evaluate; other files may be missing. `base` is the folder of the frozen model of a run with
        adapters, if it has been moved. With `average` the average of the weights is verified too. Raises
        `CheckpointError`.
        """
        hint = _damage_hint(path)
        manifest = read_manifest(path, hint)
        versions = kept_versions(manifest.step, manifest.delay)
        layout = FORMATS[manifest.format]
        tokenizer = {manifest.tokenizer} if manifest.tokenizer else set[str]()
        _require_records(path, manifest, layout.training_files(versions) | tokenizer, hint)
        names = layout.training_files(versions) if for_training else layout.model_files()
        if average:
            names |= {OPTIMIZER_FILE}
        for name in sorted(names | tokenizer):
            _verify(path / name, manifest.files[name], hint)
        geometry = _geometry(path, manifest, hint)
        return cls(
            path=path,
            step=manifest.step,
            delay=manifest.delay,
            config=manifest.config,
            geometry=geometry,
            tokenizer=path / manifest.tokenizer if manifest.tokenizer else None,
            scalers={state.version: state for state in manifest.scalers or ()},
            guard=manifest.guard or GuardState(),
            format=manifest.format,
            base=manifest.base,
            embedding=manifest.embedding,
            base_folder=manifest.base.verified(base) if manifest.base else None,
        )

    @property
    def versions(self) -> range:
        """Versions of the weights in the checkpoint; the last is `step`."""
        return kept_versions(self.step, self.delay)

    def read_weights(self, version: int, arena: Weights) -> None:
        """Read one of `versions` into tensors of this geometry, bit for bit; raises `CheckpointError`.

        The newest version is read into all tensors, an older one into those that the run trains. A checkpoint with
        adapters has no others.
        """
        self._require_shapes(arena, whole=version == self.step and self.geometry.lora is None)
        if version not in self.versions:
            raise CheckpointError(
                self.path,
                expected=f"version {version} of the weights",
                got=f"versions {list(self.versions)}",
                cause="the delay of the run differs from that of the checkpoint",
                hint=f"resume with delay={self.delay}",
            )
        self._layout.read_weights(self.path, self.geometry, self.versions, version, arena)

    def read_model(self, *, full_context: bool = False, average: bool = False) -> tuple[Geometry, Arena]:
        """Return sizes and newest weights of the model, with adapters merged into it; raises `CheckpointError`.

        With `full_context` a model with merged adapters has the context that it had before the run. With `average` the
        trained tensors are those of the average of the weights.
        """
        if self.base_folder is not None:
            read = self._read_averaged_adapters if average else self._read_adapters
            context = read_geometry(self.base_folder / CONFIG_FILE).context if full_context else self.geometry.context
            return read_merged(self.base_folder, replace(self.geometry, context=context), read)
        arena = Arena(parameter_shapes(self.geometry))
        self.read_weights(self.step, arena)
        if average:
            self._layout.read_average(self.path, arena)
        return self.geometry, arena

    def require_embedding(self, digest: str | None) -> None:
        """Raise `CheckpointError` unless a run computes its token embedding as that of the checkpoint does."""
        if digest != self.embedding:
            raise CheckpointError(
                self.path,
                expected="the layout of the embedding that the run was started with",
                got="another one" if digest and self.embedding else "one in the checkpoint or in the run alone",
                cause="the text, the tokenizer or the settings embedding.* have changed",
                hint="resume with the text and the settings of the run, or start a new run",
            )

    def read_optimizer(self, state: Mapping[str, Weights]) -> None:
        """Read the optimizer's state into arenas of the trained tensors, bit for bit; raises `CheckpointError`.

        `state` must have the names that were written, such as AdamW's `m` and `v`.
        """
        for name, arena in state.items():
            if name != BASES:
                self._require_shapes(arena, whole=False)
        self._layout.read_optimizer(self.path, self.geometry, state)

    def _read_adapters(self, tensors: Weights) -> None:
        """Read the newest adapters, and what was trained with them, into the tensors of a model of any context."""
        shapes = parameter_shapes(self.geometry)
        self.read_weights(self.step, {name: tensor for name, tensor in tensors.items() if tensor.shape == shapes[name]})

    def _read_averaged_adapters(self, tensors: Weights) -> None:
        """Read the adapters, and then the average of those that were trained."""
        self._read_adapters(tensors)
        self._layout.read_average(self.path, tensors)

    @property
    def _layout(self) -> CheckpointFormat:
        return FORMATS[self.format]

    def _require_shapes(self, arena: Weights, *, whole: bool) -> None:
        """Raise `CheckpointError` if a tensor has another shape in the checkpoint, or a `whole` model lacks one.

        A run that trains factors may have no token embedding in memory.
        """
        computed = token_embedding(self.geometry) if self.embedding else ""
        for name, shape in parameter_shapes(self.geometry).items():
            if name not in arena and (not whole or name == computed):
                continue
            expected = arena[name].shape if name in arena else "no such tensor"
            if expected != shape:
                raise CheckpointError(
                    self.path,
                    expected=f"the sizes in the configuration of the run ({name}: {expected})",
                    got=f"{self.geometry} ({name}: {shape})",
                    cause="the configuration is of another model",
                    hint="resume with the config.json of the run, or start a new run",
                )


def _require_records(path: Path, manifest: CheckpointManifest, names: frozenset[str], hint: str) -> None:
    """Raise `CheckpointError` unless the manifest lists `names` and, if losses are scaled, a state per version."""

    def edited(expected: str, got: str) -> CheckpointError:
        return CheckpointError(path / MANIFEST_FILE, expected=expected, got=got, cause="the file was edited", hint=hint)

    if missing := names - set(manifest.files):
        raise edited(f"a record of {len(names)} files", f"none of {', '.join(sorted(missing))}")
    versions = list(kept_versions(manifest.step, manifest.delay))
    scaled = [state.version for state in manifest.scalers or ()]
    if scaled and scaled != versions:
        raise edited(f"loss scaler states of versions {versions}", f"those of versions {scaled}")


def _geometry(path: Path, manifest: CheckpointManifest, hint: str) -> Geometry:
    """Return the geometry in a manifest; raises `CheckpointError` for one that this release does not know."""
    try:
        geometry = geometry_from_json(manifest.geometry)
    except UnsupportedModelError as error:
        expected, got, cause = error.expected, error.got, error.cause
    except msgspec.ValidationError as error:
        expected, got, cause = "the sizes of a model", str(error), "the file was edited"
    else:
        if can_hold(manifest.format, geometry) and (geometry.lora is None) == (manifest.base is None):
            return geometry
        expected, got = "the model that the adapters belong to", "a record of one without the other"
        cause = "the file was edited"
    raise CheckpointError(path / MANIFEST_FILE, expected=expected, got=got, cause=cause, hint=hint)


def _verify(path: Path, written: FileDigest, hint: str) -> None:
    """Raise `CheckpointError` unless the file has the digest that was recorded when it was written."""
    expected, cause = f"a file of {written.size:,} bytes", None
    try:
        size = path.stat().st_size
        found = digest_file(path) if size == written.size else None
    except FileNotFoundError:
        got, cause = "no such file", "it was removed, or not copied"
    except OSError as error:
        expected, got = "a readable file", error.strerror or str(error)
    else:
        if found == written:
            return
        if found is None:
            got = f"{size:,} bytes"
            cause = "the file was truncated, or copied in part" if size < written.size else "the file was modified"
        else:
            expected, got = f"SHA-256 {written.sha256}", f"SHA-256 {found.sha256}"
            cause = "the file was modified or damaged after it was written"
    raise CheckpointError(path, expected=expected, got=got, cause=cause, hint=hint)


def _damage_hint(path: Path) -> str:
    """Return the hint for a damaged checkpoint: restore it, or use the previous one."""
    finished = finished_checkpoints(path.parent)
    older = finished[: finished.index(path)] if path in finished else finished
    if older:
        return f"restore the file from a copy, or remove {path} to resume from {older[-1].name}"
    return "restore the file from a copy, or start a new run, since there is no earlier checkpoint"
