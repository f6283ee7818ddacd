"""The choice of the tensors that a run trains, by patterns of their names."""

from collections import Counter
from collections.abc import Iterable, Set
from fnmatch import fnmatchcase

from threadloom.stages.config.errors import ConfigError
from threadloom.stages.config.section import Section
from threadloom.stages.models import Geometry, huggingface_parts, huggingface_tied, parameter_shapes


class TrainConfig(Section, frozen=True, kw_only=True):
    """The tensors that a run trains. The others are frozen: they have no gradient and no optimizer state.

    A pattern, in which `*` stands for any characters and `?` for one, is compared with the names of the tensors: those
    in threadloom, each of which is one tensor for all layers, such as `qkv_weight`, and those in Hugging Face's layout,
    such as `model.layers.*.self_attn.*`.
    """

    only: tuple[str, ...] = ()
    """Patterns of the tensors to train. Empty: all of them."""
    freeze: tuple[str, ...] = ()
    """Patterns of the tensors to freeze, also of those in `only`."""

    def require_unused(self) -> None:
        """Raise ConfigError if tensors are selected; with adapters, the model is frozen as a whole."""
        for name, patterns in (("only", self.only), ("freeze", self.freeze)):
            if patterns:
                raise ConfigError(
                    f"train.{name}",
                    expected="no patterns in a run with adapters, which freezes the model",
                    got=" ".join(patterns),
                    hint="modules in lora.save are trained as well; or set lora.rank=0",
                )

    def frozen_tensors(self, geometry: Geometry) -> frozenset[str]:
        """Return the names of the frozen tensors, as in `parameter_shapes`.

        Raises ConfigError for a pattern that matches no tensor, or a part of one, and if no tensor is left to train.
        """
        if not self.only and not self.freeze:
            return frozenset()
        names = frozenset(parameter_shapes(geometry))
        trained = _matching("train.only", self.only, geometry) if self.only else names
        frozen = names - trained | _matching("train.freeze", self.freeze, geometry)
        if frozen == names:
            raise ConfigError(
                "train.freeze",
                expected="patterns that leave a tensor to train",
                got=" ".join(self.freeze),
                hint=f"the tensors are {_names(geometry)}",
            )
        return frozen


def _matching(key: str, patterns: Iterable[str], geometry: Geometry) -> frozenset[str]:
    """Return the tensors that one of the patterns matches."""
    return frozenset().union(*(matching_tensors(key, pattern, geometry) for pattern in patterns))


def matching_tensors(key: str, pattern: str, geometry: Geometry) -> frozenset[str]:
    """Return the tensors that a pattern of the setting `key` matches; raise ConfigError if there are none."""
    names = {name: name for name in parameter_shapes(geometry)} | huggingface_tied(geometry)
    found = {tensor for name, tensor in names.items() if fnmatchcase(name, pattern)}
    parts = huggingface_parts(geometry)
    matched = {name for name in parts if parts[name] not in found and fnmatchcase(name, pattern)}
    found |= whole_tensors(key, pattern, matched, geometry)
    if not found:
        example = next(iter(parts))
        raise ConfigError(
            key,
            expected="patterns of names of tensors",
            got=f"{pattern!r}, which matches none",
            hint=f"the tensors are {_names(geometry)}, or those of Hugging Face's layout, such as {example}",
        )
    return frozenset(found)


def whole_tensors(key: str, pattern: str, names: Set[str], geometry: Geometry) -> frozenset[str]:
    """Return the tensors that names in Hugging Face's layout, which `pattern` has matched, consist of.

    Raises ConfigError for a part of a tensor.
    """
    parts = huggingface_parts(geometry)
    tensors = parts | huggingface_tied(geometry)
    total, matched = Counter(parts.values()), Counter(parts[name] for name in parts if name in names)
    for tensor, count in matched.items():
        if count < total[tensor]:
            raise _partial(key, pattern, tensor, names, geometry)
    return frozenset(tensors[name] for name in names)


def _partial(key: str, pattern: str, tensor: str, names: Set[str], geometry: Geometry) -> ConfigError:
    parts = [name for name, whole in huggingface_parts(geometry).items() if whole == tensor]
    left_out = next(name for name in parts if name not in names)
    return ConfigError(
        key,
        expected="patterns of whole tensors",
        got=f"{pattern!r}, which matches a part of {tensor}: {left_out} is not in it",
        cause="all layers of a tensor, and matrices that are multiplied together, are trained or frozen together",
        hint=f"use {tensor}, which has all {len(parts)} parts",
    )


def _names(geometry: Geometry) -> str:
    return ", ".join(parameter_shapes(geometry))
