"""Checks of the values in a config.json of Hugging Face's layout, which comes from outside."""

import json
import math
from collections.abc import Mapping
from typing import Any

from threadloom.stages.models.architecture import UnsupportedModelError

_LARGEST = {
    "vocab_size": 16_777_216,
    "n_positions": 16_777_216,
    "max_position_embeddings": 16_777_216,
    "original_max_position_embeddings": 16_777_216,
    "n_layer": 1024,
    "num_hidden_layers": 1024,
    "n_head": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "n_embd": 65_536,
    "hidden_size": 65_536,
    "head_dim": 65_536,
    "intermediate_size": 1_048_576,
}
"""Largest accepted value of each size, far above those of models that a CPU trains."""


_FORGOTTEN = frozenset({"_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version"})
"""Keys of a config.json that describe its file or folder, and not the model."""


def merged_config(
    came_in: Mapping[str, Any] | None, decided: Mapping[str, Any], otherwise: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a config.json: the keys that came in, changed by `decided`, and `otherwise` where none came in."""
    kept = {key: value for key, value in (came_in or {}).items() if key not in _FORGOTTEN}
    return kept | dict(decided) | {key: value for key, value in otherwise.items() if key not in kept}


def require_sizes(config: object, names: tuple[str, ...]) -> None:
    """Raise UnsupportedModelError unless the fields `names` of a configuration are sizes of a model."""
    for name in names:
        value = getattr(config, name)
        if value is None or not 1 <= value <= _LARGEST[name]:
            expected = (
                f"{name} of at least 1" if value is not None and value < 1 else f"{name} from 1 to {_LARGEST[name]:,}"
            )
            raise UnsupportedModelError(expected, _text(value), "the file was edited")


def require_values(config: object, accepted: Mapping[str, tuple[Any, ...]], model: str) -> None:
    """Raise UnsupportedModelError unless each field that changes the computation has one of the accepted values."""
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            expected = " or ".join(map(_text, values))
            raise UnsupportedModelError(
                f"{name} = {expected}", _text(getattr(config, name)), f"an unsupported variant of {model}"
            )


def require_positive(name: str, value: float | None, least: float = 0.0) -> float:
    """Return a finite number above `least`; raises UnsupportedModelError for another value."""
    if value is None or not math.isfinite(value) or value <= least:
        raise UnsupportedModelError(f"{name} above {least:g}", _text(value), "the file was edited")
    return value


def _text(value: object) -> str:
    return json.dumps(value)
