"""Growing the run, the checkpoint or the model at a path."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from threadloom.pipeline import Arena, arena_size, available_cores
from threadloom.stages.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    ExportedModel,
    export_model,
    latest_checkpoint,
    load_model,
    save_checkpoint,
)
from threadloom.stages.config import Config, ConfigError, ResolvedConfig
from threadloom.stages.data import TOKENIZER_FILE, load_tokenizer
from threadloom.stages.machine import detect
from threadloom.stages.models import Growth, parameter_count, parameter_shapes
from threadloom.stages.resolve import run_config_from_json, to_json
from threadloom.stages.run import planned_memory, saved_config
from threadloom.stages.storage import (
    CONFIG_FILE,
    RunDirectory,
    StoredFormat,
    atomic_write,
    copy_files,
    is_adapter_folder,
    is_model_folder,
    new_directory,
    read_geometry,
    require_absent,
)
from threadloom.stages.tools.grow.grown_config import grown_config
from threadloom.stages.tools.grow.grown_state import grown_state
from threadloom.stages.tools.grow.request import GrowthRequest


@dataclass(frozen=True)
class _Source:
    """A checkpoint, and the run that it belongs to."""

    checkpoint: Checkpoint
    run: RunDirectory | None
    """None: the checkpoint has been copied out of its run."""

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        if self.run is not None and self.run.config.is_file():
            return saved_config(self.run.path)
        return run_config_from_json(json.dumps(dict(self.checkpoint.config)), str(self.checkpoint.path))


def grow_at(path: Path, out: Path | None, request: GrowthRequest, *, force: bool = False) -> list[str]:
    """Write what is at a path, grown, to the new directory `out`; return lines that describe the result.

    `out` is by default the name of the run, or of the model, with `-grown`. With `force`, memory is not checked. Raises
    ConfigError and CheckpointError, and DiskFullError if there is no space.
    """
    path = path.absolute()
    checkpoint = path if (path / MANIFEST_FILE).exists() else latest_checkpoint(RunDirectory(path).checkpoints)
    if checkpoint is None:
        return _grow_model(path, out or _default_out(path), request, force=force)
    inside = checkpoint.parent.name == "checkpoints"
    run = RunDirectory(checkpoint.parent.parent) if inside else None
    out = out or _default_out(checkpoint if run is None else run.path)
    require_absent(out)
    if is_adapter_folder(checkpoint):  # before the model that they belong to is looked for
        raise _adapters(path)
    return _grow_run(_Source(Checkpoint.open(checkpoint), run), out, request, force=force)


def _default_out(path: Path) -> Path:
    return path.with_name(f"{path.name}-grown")


def _grow_run(source: _Source, out: Path, request: GrowthRequest, *, force: bool) -> list[str]:
    """Write a grown run; see `grow_at`."""
    checkpoint, saved, cores = source.checkpoint, source.config, available_cores()
    if saved.embedding.derived:
        raise ConfigError(
            "embedding",
            expected="a plain one, in a run that grows",
            got=saved.embedding.setting,
            cause="there are no rules yet by which the tensors behind the embedding grow",
            hint=f"grow the model without its training: threadloom export {shlex.quote(str(checkpoint.path))} MODEL, "
            "and grow MODEL",
        )
    growth = request.growth(checkpoint.geometry, saved.seed)
    config = grown_config(saved, growth.geometry, checkpoint.step, request, str(checkpoint.path), cores)
    if not force:
        _require_memory(sum(planned_memory(config).values()), config.name, growth)
    tokenizer = checkpoint.tokenizer
    end = load_tokenizer(tokenizer).end_of_text if tokenizer else None
    state = grown_state(checkpoint, growth, request.moments, config, end)
    data = {} if source.run is None else _files(source.run.data)
    with new_directory(out, state.nbytes + sum(path.stat().st_size for path in data.values()) + (1 << 20)) as folder:
        run = RunDirectory(folder)
        run.data.mkdir()
        copy_files(data, run.data)
        save_checkpoint(run.checkpoints, state, tokenizer, keep=0)
        atomic_write(run.config, to_json(config).encode())
    return _description(out, growth, checkpoint, config)


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a prepared text: name in the folder → path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path for path in found}


def _description(out: Path, growth: Growth, checkpoint: Checkpoint, config: ResolvedConfig) -> list[str]:
    step, schedule = checkpoint.step, config.schedule
    warm = f", the first {schedule.rewarm:,} of them with a rising learning rate" if schedule.rewarm else ""
    return [
        _sizes(growth),
        f"after {step:,} updates, {config.steps - step:,} are left, up to {config.steps:,}{warm}",
        f"to continue: threadloom train --resume --out {shlex.quote(str(out))}",
    ]


def _sizes(growth: Growth) -> str:
    before, after = parameter_count(growth.small), parameter_count(growth.geometry)
    return f"{before:,} parameters have become {after:,}: {growth.geometry}"


def _grow_model(folder: Path, out: Path, request: GrowthRequest, *, force: bool) -> list[str]:
    """Write a grown model in Hugging Face's layout; see `grow_at`."""
    if is_adapter_folder(folder):
        raise _adapters(folder)
    if not is_model_folder(folder):
        is_run = RunDirectory(folder).holds_run()
        raise ConfigError(
            str(folder),
            expected="a run with a checkpoint, a checkpoint, or a folder with a model in Hugging Face's layout",
            got="a run without a checkpoint" if is_run else "none of them" if folder.exists() else "no such folder",
            hint="wait for its first checkpoint (checkpoint.interval)" if is_run else "pass the folder of train --out",
        )
    if request.overrides or request.rewarm:
        raise ConfigError(
            "--set" if request.overrides else "--rewarm",
            expected="a run, whose training goes on",
            got="a model without one",
            hint="pass the settings to threadloom train --init, which starts a training of the grown model",
        )
    require_absent(out)
    growth = request.growth(read_geometry(folder / CONFIG_FILE), 0)
    if not force:
        both = arena_size(parameter_shapes(growth.small)) + arena_size(parameter_shapes(growth.geometry))
        _require_memory(4 * both, folder.name, growth)
    _, weights = load_model(folder)
    target = Arena(parameter_shapes(growth.geometry))
    growth.write_weights(weights, target, growth.inserted())
    end = load_tokenizer(folder).end_of_text if (folder / TOKENIZER_FILE).exists() else None
    export_model(ExportedModel(folder, target, growth.geometry, end), out, StoredFormat.FLOAT32)
    return [
        _sizes(growth),
        "the model has no moments and no schedule: a training of it starts with its own warm-up",
        f"to train it: threadloom train --init {shlex.quote(str(out))} --text FILE --out RUN",
    ]


def _require_memory(needed: int, name: str, growth: Growth) -> None:
    """Raise ConfigError if the grown run, or the growth of a model, does not fit into the available memory."""
    available = detect().memory_available
    if available is None or needed <= available:
        return
    raise ConfigError(
        name,
        expected=f"a grown model that fits into the {available / 1e6:,.0f} MB of memory that are available",
        got=f"one that needs {needed / 1e6:,.0f} MB for {parameter_count(growth.geometry):,} parameters",
        cause="the system would stop the process without a message",
        hint="pass a smaller --width or --depth, or --set micro_batch=1 --set checkpoint.copies=false; --force writes "
        "it anyway",
    )


def _adapters(path: Path) -> ConfigError:
    return ConfigError(
        str(path),
        expected="a model whose weights are trained",
        got="adapters (LoRA) of a model",
        cause="an adapter has the sizes of the modules that it changes",
        hint=f"merge them first, threadloom merge {shlex.quote(str(path))} MODEL, and grow MODEL",
    )
