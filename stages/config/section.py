"""The base of the sections of a configuration, and their settings by dotted key."""

from typing import Any

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections of a configuration.

    A section of which there are several kinds is a tagged union: the tag is the setting that selects the kind, and a
    class attribute of its name holds its value.
    """


def flatten(config: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Return the value of every setting, by dotted key, in the order of the configuration."""
    tag = config.__struct_config__.tag_field
    found: dict[str, Any] = {prefix + tag: getattr(config, tag)} if tag else {}
    for name in config.__struct_fields__:
        value = getattr(config, name)
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, msgspec.Struct) else {prefix + name: value}
    return found
