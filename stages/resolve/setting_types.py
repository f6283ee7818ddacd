"""The settings of a configuration by dotted key, with their types.

A section that depends on the architecture is a union of one class per architecture, told apart by their tag.
"""

import typing
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec

from threadloom.stages.config import Config, ModelArchitecture


def setting_types(
    section: type[msgspec.Struct] = Config, prefix: str = "", architecture: ModelArchitecture | None = None
) -> dict[str, Any]:
    """Return the type of every setting, by dotted key, in the order of the configuration.

    The settings `model.*` are those of one architecture; by default those of all.
    """
    found: dict[str, Any] = {}
    for name, kind in field_types(section).items():
        sections = sections_of(kind)
        for inner in sections:
            if architecture is None or len(sections) == 1 or inner.__struct_config__.tag == architecture.value:
                found |= setting_types(inner, f"{prefix}{name}.", architecture)
        if not sections:
            found[prefix + name] = kind
    return found


@cache  # evaluating the annotations of all sections takes half a millisecond, for each setting that is changed
def field_types(section: type[msgspec.Struct]) -> Mapping[str, Any]:
    """Return the type of every field of a section, and of the class attribute that holds its tag."""
    return MappingProxyType(
        {
            name: typing.get_args(kind)[0] if typing.get_origin(kind) is typing.ClassVar else kind
            for name, kind in typing.get_type_hints(section).items()
        }
    )


def sections_of(kind: Any) -> list[type[msgspec.Struct]]:
    """Return the section that is the type of a field, or those of a union; none for the type of a setting."""
    if typing.get_origin(kind) is tuple:  # a list of structs is one setting
        return []
    options = typing.get_args(kind) or (kind,)
    return [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
