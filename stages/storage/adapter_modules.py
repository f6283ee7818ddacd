"""The modules that adapters in PEFT's layout belong to, by the names of the tensors in their file.

PEFT names the tensors `base_model.model.<module>.lora_A.weight` (rank, inputs) and `.lora_B.weight` (outputs, rank),
and those of modules that are saved as a whole `base_model.model.<tensor>`. A file without the prefix is opened by PEFT,
and nothing in it is applied.

The names decide, and `target_modules` is compared with them if it is a list. A regular expression is not evaluated: the
file has the result, and an expression from elsewhere may take any amount of time.
"""

import re
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from threadloom.stages.models import (
    Geometry,
    Lora,
    architecture_of,
    huggingface_parts,
    huggingface_tied,
    linear_modules,
)
from threadloom.stages.storage.adapter_config import (
    ADAPTER_FILE,
    ALL_LINEAR,
    MERGE_WITH_PEFT,
    AdapterConfig,
)
from threadloom.stages.storage.tensor_file import CheckpointError
from threadloom.stages.storage.tensor_reader import first_names, open_tensors

ADAPTER_PREFIX = "base_model.model."

_MATRIX = re.compile(r"(.+)\.lora_[AB]\.weight")
_PICKLE = "adapter_model.bin"
_INTACT = "use the folder as PEFT has saved it, with the model that the adapters were trained with"


@dataclass(frozen=True)
class AdapterParts:
    """The parts of a model that adapters in a folder change."""

    lora: Lora
    saved: frozenset[str]
    """Tensors of `parameter_shapes` that the file has as a whole."""

    def saved_modules(self, geometry: Geometry) -> tuple[str, ...]:
        """Return the names of the saved modules: within a layer, or in the model for those outside the layers."""
        parts = architecture_of(geometry).huggingface.parts(geometry)
        modules = {
            name if part.layer is None else name.split(f".{part.layer}.", 1)[1]
            for name, part in parts.items()
            if part.tensor in self.saved
        }
        return tuple(sorted({name.rpartition(".")[0] for name in modules}))


def read_adapter_parts(folder: Path, config: AdapterConfig, geometry: Geometry) -> AdapterParts:
    """Return the parts of the model of a geometry that the adapters in `folder` change.

    Only the header of the file is read; shapes are checked when the tensors are. Raises CheckpointError for names that
    do not fit the model or the configuration.
    """
    path = _weights_file(folder)
    with open_tensors(path) as file:
        names = frozenset(file.shapes)
    known = {module.path: module for layer in range(geometry.layers) for module in linear_modules(geometry, layer)}
    adapted, whole = _split(path, names, known.keys(), geometry)
    saved = _saved_tensors(path, whole, config, geometry)
    _require_targets(path, config, adapted, {module for module in known if known[module].tensor not in saved})
    if both := sorted(module for module in adapted if known[module].tensor in saved):
        expected, got = "adapters of modules that are not saved as a whole", f"those of {first_names(both, 1)}"
        raise _error(path, expected=expected, got=got, cause="PEFT ignores such adapters")
    layers = [
        frozenset(known[module].name for module in adapted if known[module].layer == layer)
        for layer in range(geometry.layers)
    ]
    for layer, modules in enumerate(layers):
        if odd := sorted(modules ^ layers[0]):
            raise _error(
                path,
                expected="adapters of the same modules in all layers",
                got=f"{odd[0]} in one of the layers 0 and {layer}, but not in the other",
                cause="target_modules selects modules of some layers",
                hint=MERGE_WITH_PEFT,
            )
    lora = Lora(config.r, config.lora_alpha, layers[0], config.use_rslora, config.lora_dropout)
    return AdapterParts(lora, saved)


def _weights_file(folder: Path) -> Path:
    path = folder / ADAPTER_FILE
    if not path.exists() and (folder / _PICKLE).exists():
        raise CheckpointError(
            path,
            expected=f"the adapters as {ADAPTER_FILE}",
            got=_PICKLE,
            cause="a pickle, which can run code when it is opened",
            hint="open it with PEFT, and save it with `model.save_pretrained(directory)`",
        )
    return path


def _split(path: Path, names: Set[str], modules: Set[str], geometry: Geometry) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules with an adapter, and the names in the model's layout of the tensors saved as a whole."""
    if names and not any(name.startswith(ADAPTER_PREFIX) for name in names):
        raise CheckpointError(
            path,
            expected=f"names that begin with {ADAPTER_PREFIX}",
            got=first_names(sorted(names), 1),
            cause="the file was not saved by PEFT, which applies no tensor without the prefix",
            hint="save the adapters with `save_pretrained` of the PeftModel, or rename the tensors",
        )
    tensors = huggingface_parts(geometry).keys() | huggingface_tied(geometry).keys()
    adapted, whole = set[str](), set[str]()
    for name in sorted(names):
        inner = name.removeprefix(ADAPTER_PREFIX)
        match = _MATRIX.fullmatch(inner)
        if match and match[1] in modules:
            adapted.add(match[1])
        elif name != inner and inner in tensors:
            whole.add(inner)
        else:
            expected = "adapters of linear layers of the model's blocks, or whole tensors of it"
            cause = "the adapters are of another model, or of modules that cannot have any here"
            raise _error(path, expected=expected, got=name, cause=cause, hint=f"{_INTACT}, or {MERGE_WITH_PEFT}")
    if not adapted:
        raise _error(path, expected="tensors of adapters", got="none", cause="the file is incomplete")
    return frozenset(adapted), frozenset(whole)


def _saved_tensors(path: Path, whole: Set[str], config: AdapterConfig, geometry: Geometry) -> frozenset[str]:
    """Return the tensors of `parameter_shapes` that the names in the model's layout are."""
    parts, tied = huggingface_parts(geometry), huggingface_tied(geometry)
    for head, tensor in tied.items():
        embedding = next(name for name, own in parts.items() if own == tensor)
        if len({head, embedding} & whole) == 1:
            raise _error(
                path,
                expected=f"both {embedding} and {head}, or neither",
                got=next(iter({head, embedding} & whole)),
                cause="config.json says that the output projection is the token embedding, but one of them was trained",
                hint="train them with `ensure_weight_tying=True` in LoraConfig, or use a model that does not tie them",
            )
    wanted = [name for name in parts if _is_saved(name, config.modules_to_save or ())]
    if missing := [name for name in wanted if name not in whole]:
        got, cause = f"no {first_names(missing)}", "the file is incomplete"
        raise _error(path, expected="the tensors of modules_to_save", got=got, cause=cause)
    total, found = Counter(parts.values()), Counter(parts[name] for name in whole if name in parts)
    for tensor, count in found.items():
        if count < total[tensor]:
            left_out = next(name for name in parts if parts[name] == tensor and name not in whole)
            raise _error(
                path,
                expected=f"{left_out} as well",
                got=f"{count} of the {total[tensor]} parts of {tensor}",
                cause="all layers of a tensor, and matrices that are multiplied together, are trained together here",
                hint=MERGE_WITH_PEFT,
            )
    return frozenset(found)


def _is_saved(name: str, modules: Set[str] | list[str] | tuple[str, ...]) -> bool:
    """Return True if PEFT saves a tensor as a whole: a module that contains it has a name that ends as one of these."""
    parents = name.split(".")[:-1]
    paths = [".".join(parents[:length]) for length in range(1, len(parents) + 1)]
    return any(path.endswith(module) for path in paths for module in modules)


def _require_targets(path: Path, config: AdapterConfig, adapted: Set[str], linear: Set[str]) -> None:
    """Raise CheckpointError unless the modules with an adapter are those that the configuration lists."""
    targets, excluded = config.target_modules, config.exclude_modules
    if targets is None or (isinstance(targets, str) and targets != ALL_LINEAR):
        return
    listed = {name for name in linear if targets == ALL_LINEAR or _ends_in_one(name, targets)}
    if isinstance(excluded, list):
        listed = {name for name in listed if not _ends_in_one(name, excluded)}
    if extra := sorted(adapted - listed):
        expected, got = "adapters of target_modules only", f"one of {first_names(extra, 1)} in addition"
        raise _error(path, expected=expected, got=got, cause="the file and the configuration are of different adapters")
    if (missing := sorted(listed - adapted)) and not isinstance(excluded, str):
        expected, got = f"adapters of all {len(listed)} target_modules", f"none of {first_names(missing)}"
        raise _error(path, expected=expected, got=got, cause="the file is incomplete, or of another model")


def _ends_in_one(path: str, names: list[str] | str) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _error(path: Path, *, expected: str, got: str, cause: str, hint: str = _INTACT) -> CheckpointError:
    return CheckpointError(path, expected=expected, got=got, cause=cause, hint=hint)
