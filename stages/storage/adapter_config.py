"""The configuration of low-rank adapters in PEFT's layout, `adapter_config.json`.

A key that changes what the adapters compute and that is not supported is refused by its name. Unknown keys, which later
versions of PEFT may write, are reported as a warning when the adapters are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from threadloom.stages.storage.json_text import plain_json
from threadloom.stages.storage.model_folder import CONFIG_FILE, INDEX_FILE, MODEL_FILE, is_model_folder
from threadloom.stages.storage.tensor_file import CheckpointError

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
"""Value of `target_modules` for all linear layers but the output projection."""

MERGE_WITH_PEFT = (
    "merge them with PEFT, `PeftModel.from_pretrained(model, directory).merge_and_unload()`, and use the merged model"
)

_REFUSED: Mapping[str, str] = {
    "use_dora": "a learned magnitude of every column (DoRA)",
    "use_qalora": "inputs that are averaged in groups (QA-LoRA)",
    "use_bdlora": "block-diagonal adapters (BD-LoRA)",
    "lora_bias": "biases of the adapters",
    "rank_pattern": "adapters of several ranks",
    "alpha_pattern": "adapters with several values of alpha",
    "layers_to_transform": "adapters in some of the layers",
    "layer_replication": "layers that are used several times",
    "target_parameters": "adapters of parameters that are not linear layers",
    "trainable_token_indices": "single rows of the token embedding that are trained",
    "alora_invocation_tokens": "adapters that tokens switch on (aLoRA)",
    "arrow_config": "adapters that are chosen for each token (Arrow)",
    "kasa_config": "singular values that are trained (KaSA)",
    "monteclora_config": "adapters drawn from a distribution (MonteCLoRA)",
    "velora_config": "compressed activations (VeLoRA)",
}
"""Key → what it stands for unless it is empty, null or false."""

_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the weights of the model as they are."""

_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision", "runtime_config",
    }
)  # fmt: skip
"""Keys that matter to the training with PEFT alone, or that are checked; `fan_in_fan_out` follows from the model."""


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that decide what the adapters compute, with PEFT's defaults."""

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    """Folder of the model that the adapters belong to, or its name on a hub."""
    r: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 8
    """Rank."""
    lora_alpha: Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)] = 8.0
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    target_modules: str | list[str] | None = None
    """Names of modules, `all-linear` or a regular expression."""
    exclude_modules: str | list[str] | None = None
    """Names of modules that `target_modules` does not stand for, or a regular expression."""
    modules_to_save: list[str] | None = None
    """Modules whose tensors are in the file as a whole."""
    unknown_keys: tuple[str, ...] = ()
    """Keys with a value that are not known here; set by `read_adapter_config`."""


def is_adapter_folder(folder: Path) -> bool:
    """Return True if a directory has adapters in PEFT's layout, and not the weights of a model as well."""
    has_model = any((folder / name).exists() for name in (MODEL_FILE, INDEX_FILE))
    return (folder / ADAPTER_CONFIG_FILE).is_file() and not has_model


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the configuration of adapters.

    Raises CheckpointError for a file that is not one, and for adapters that compute something else than LoRA and rsLoRA
    of linear layers.
    """
    path = folder / ADAPTER_CONFIG_FILE
    try:
        content = plain_json(path.read_bytes())
        raw = msgspec.json.decode(content, type=dict[str, Any])
        kind = raw.get("peft_type")
        if kind is not None and kind != "LORA":
            raise _unsupported(path, "peft_type = LORA", f"{kind!r}", "another method than LoRA")
        config = msgspec.json.decode(content, type=AdapterConfig)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            path,
            expected="the configuration of LoRA adapters as JSON, with peft_type",
            got=f"{type(error).__name__}: {error}",
            cause="the file is incomplete, or was edited",
            hint="use a folder that `save_pretrained` of a PeftModel has written",
        ) from error
    _require_supported(path, raw, config)
    known = {*AdapterConfig.__struct_fields__, *_REFUSED, *_WITHOUT_EFFECT, "ensure_weight_tying"}
    unknown = tuple(sorted(key for key, value in raw.items() if key not in known and value))
    return msgspec.structs.replace(config, unknown_keys=unknown)


def _require_supported(path: Path, raw: Mapping[str, Any], config: AdapterConfig) -> None:
    if config.task_type not in (None, "CAUSAL_LM"):
        raise _unsupported(path, "task_type = CAUSAL_LM", repr(config.task_type), "another task than text generation")
    if config.bias != "none":
        raise _unsupported(path, "bias = none", repr(config.bias), "biases that are trained")
    for key, meaning in _REFUSED.items():
        value = raw.get(key)
        if value or (value == 0 and value is not False):  # layers_to_transform = 0 is the first layer
            raise _unsupported(path, f"no {key}", f"{value!r:.60}", meaning)
    if config.init_lora_weights is not None and config.init_lora_weights not in _INITIALISATIONS:
        raise _unsupported(
            path,
            "init_lora_weights that leaves the model as it is",
            repr(config.init_lora_weights),
            "PEFT changes the weights of the model before it applies such adapters",
        )


def _unsupported(path: Path, expected: str, got: str, meaning: str) -> CheckpointError:
    return CheckpointError(path, expected=expected, got=got, cause=meaning, hint=MERGE_WITH_PEFT)


def base_folder(folder: Path, config: AdapterConfig, base: Path | None = None) -> Path:
    """Return the absolute path of the folder of the model that adapters belong to.

    It is `base`, otherwise the folder in their configuration. Raises CheckpointError if there is no model.
    """
    found = base or Path(config.base_model_name_or_path or "")
    if found != Path() and is_model_folder(found):
        return found.absolute()
    if base is not None:
        got, hint = _kind_of(base), f"pass the folder that contains the {CONFIG_FILE} of the model"
        raise CheckpointError(base, expected="the folder of a model in Hugging Face's layout", got=got, hint=hint)
    name = config.base_model_name_or_path
    raise CheckpointError(
        folder / ADAPTER_CONFIG_FILE,
        expected="base_model_name_or_path, the folder of the model that the adapters change",
        got="null" if name is None else f"{name!r}, {_kind_of(found)}",
        cause="the folder was moved or removed, or it is the name of a model on a hub",
        hint="pass its folder with --base (threadloom train and merge), or write its path into the file",
    )


def _kind_of(path: Path) -> str:
    return "a folder without a model" if path.is_dir() else "no such folder"
