"""Errors about input from outside: a setting, an argument or a file that cannot be used."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a text for one line of a message: control characters and undecodable bytes of file names are escaped."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode represents it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class InputError(ValueError):
    """Input that cannot be used.

    The message reads `subject: expected ..., got ... (cause). Hint: ...`, without cause and hint if there are none.
    """

    def __init__(
        self, subject: str, expected: str, got: str, cause: str | None = None, hint: str | None = None
    ) -> None:
        self.subject, self.expected, self.got, self.cause, self.hint = subject, expected, got, cause, hint
        super().__init__(printable(self._message()))

    def _message(self) -> str:
        message = f"{self.subject}: expected {self.expected}, got {self.got}"
        if self.cause:
            message += f" ({self.cause})"
        return f"{message}. Hint: {self.hint}" if self.hint else message


class ConfigError(InputError):
    """A setting that cannot be used; `subject` is its dotted key, or the name of the file."""


class UnknownSettingError(ConfigError):
    """A key that is not a setting; `close` are settings with similar names."""

    def __init__(self, key: str, source: str | None = None, close: Sequence[str] = ()) -> None:
        self.source, self.close = source, tuple(close)
        super().__init__(key, "the key of a setting", repr(key))

    def _message(self) -> str:
        place = f"{self.source}: " if self.source else ""
        names = " or ".join(repr(name) for name in self.close)
        return f"{place}unknown setting {self.got}" + (f"; did you mean {names}?" if names else "")
