"""The layouts of records with conversations, and their recognition.

To add a layout, write the structure of its records with a method `messages`, name it in `Layout` of the configuration,
and list it in `_LAYOUTS`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import msgspec

from threadloom.stages.config import ConversationLayout
from threadloom.stages.data.conversations.conversation import (
    ABSENT,
    Conversation,
    ConversationError,
    Message,
    Role,
    checked,
)
from threadloom.stages.data.documents import Origin


class _WrongRecord(ValueError):
    """A record of the right types whose content is wrong: what was expected, and what there is."""

    def __init__(self, expected: str, got: str, hint: str | None = None) -> None:
        self.expected, self.got, self.hint = expected, got, hint


class _Record(Protocol):
    """A record of a layout."""

    example: ClassVar[str]

    def messages(self) -> Iterable[Message]:
        """Yield its messages; raises _WrongRecord."""


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _OpenAiMessage(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    weight: float | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def message(self, number: int) -> Message:
        role = _role(self.role, _ROLES, number)
        return Message(role, _joined(self.content, number), self.weight != 0, self._further(role, number))

    def _further(self, role: Role, number: int) -> dict[str, Any]:
        """Return the fields of calls of tools and their results, which templates see as they are."""
        further: dict[str, Any] = {}
        if self.tool_calls:
            if role is not Role.ASSISTANT:
                raise _WrongRecord(
                    f"calls of tools by the assistant alone, in message {number}", f"some by {role.value}"
                )
            _require_json(self.tool_calls, f"tool_calls of message {number}")
            further["tool_calls"] = self.tool_calls
            if self.content is None:  # transformers leaves out what is null
                further["content"] = ABSENT
        if role is Role.TOOL:
            given = {"name": self.name, "tool_call_id": self.tool_call_id}
            further |= {name: value for name, value in given.items() if value is not None}
        return further


class _OpenAi(msgspec.Struct):
    """Messages as the chat interface of OpenAI has them, with its weights for fine-tuning."""

    example: ClassVar[str] = '{"messages": [{"role": "user", "content": "..."}, ...]}'
    conversation: list[_OpenAiMessage] = msgspec.field(name="messages")
    tools: list[dict[str, Any]] | str | None = None

    def messages(self) -> Iterable[Message]:
        return (message.message(number) for number, message in enumerate(self.conversation, start=1))


class _ShareGptMessage(msgspec.Struct):
    author: str = msgspec.field(name="from")
    value: str


class _ShareGpt(msgspec.Struct):
    """Messages as the site ShareGPT exported them."""

    example: ClassVar[str] = '{"conversations": [{"from": "human", "value": "..."}, ...]}'
    conversations: list[_ShareGptMessage]
    system: str | None = None

    def messages(self) -> Iterable[Message]:
        if self.system:
            yield Message(Role.SYSTEM, self.system)
        for number, message in enumerate(self.conversations, start=1):
            yield Message(_role(message.author, _AUTHORS, number), message.value)


class _Alpaca(msgspec.Struct):
    """An instruction, its input if it has one, and what the assistant answers."""

    example: ClassVar[str] = '{"instruction": "...", "input": "...", "output": "..."}'
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None

    def messages(self) -> Iterable[Message]:
        if self.system:
            yield Message(Role.SYSTEM, self.system)
        yield Message(Role.USER, f"{self.instruction}\n\n{self.input}" if self.input else self.instruction)
        yield Message(Role.ASSISTANT, self.output)


class _Completion(msgspec.Struct):
    """A prompt and its completion, as texts or each as a list of messages."""

    example: ClassVar[str] = '{"prompt": "...", "completion": "..."}'
    prompt: str | list[_OpenAiMessage]
    completion: str | list[_OpenAiMessage]
    tools: list[dict[str, Any]] | str | None = None

    @property
    def texts(self) -> bool:
        return isinstance(self.prompt, str) and isinstance(self.completion, str)

    def messages(self) -> Iterable[Message]:
        if isinstance(self.prompt, str) or isinstance(self.completion, str):
            if not isinstance(self.prompt, str) or not isinstance(self.completion, str):
                raise _WrongRecord("a prompt and a completion of one kind", "a text and a list of messages")
            return [Message(Role.USER, self.prompt), Message(Role.ASSISTANT, self.completion)]
        asked = [message.message(number) for number, message in enumerate(self.prompt, start=1)]
        answered = [message.message(number) for number, message in enumerate(self.completion, start=len(asked) + 1)]
        return [*(replace(each, counted=False) for each in asked), *answered]


_LAYOUTS: Mapping[ConversationLayout, type[_OpenAi | _ShareGpt | _Alpaca | _Completion]] = {
    ConversationLayout.OPENAI: _OpenAi,
    ConversationLayout.SHAREGPT: _ShareGpt,
    ConversationLayout.ALPACA: _Alpaca,
    ConversationLayout.COMPLETION: _Completion,
}
_ROLES = {role.value: role for role in Role}
_AUTHORS = _ROLES | {"human": Role.USER, "gpt": Role.ASSISTANT, "chatgpt": Role.ASSISTANT}
"""Names of authors in the layout of ShareGPT, which differ between collections."""

_MOST_LEVELS = 200
"""Levels of the calls of tools, and of tools: as of a record of JSON Lines."""
_JSON_TYPES = (Mapping, list, tuple, str, int, float, type(None))

KEYS: tuple[tuple[frozenset[str], ConversationLayout], ...] = (
    (frozenset({"messages"}), ConversationLayout.OPENAI),
    (frozenset({"conversations"}), ConversationLayout.SHAREGPT),
    (frozenset({"instruction", "output"}), ConversationLayout.ALPACA),
    (frozenset({"prompt", "completion"}), ConversationLayout.COMPLETION),
)
"""Keys that a record of a layout has, in the order in which they are looked for."""


def layout_of(record: object) -> ConversationLayout | None:
    """Return the layout of a record by its keys; None if it is not a conversation."""
    if not isinstance(record, Mapping):
        return None
    return next((layout for keys, layout in KEYS if keys <= record.keys()), None)


def read_conversation(record: object, origin: Origin, layout: ConversationLayout | None = None) -> Conversation:
    """Return the conversation in a decoded record; its layout is recognised unless it is given.

    Raises ConversationError for a record of another form and for a conversation with nothing to learn.
    """
    layout = layout or layout_of(record)
    if layout is None:
        keys = ", ".join(map(repr, list(record)[:6])) if isinstance(record, Mapping) else ""
        raise ConversationError(
            origin,
            expected=f"a conversation, such as {_OpenAi.example}",
            got=f"a record with the keys {keys}" if keys else f"a record of the type {_type_name(record)}",
            hint="write the records in one of the layouts of docs/guide/data.md",
        )
    structure = _LAYOUTS[layout]
    try:
        found = msgspec.convert(record, structure)
        messages = tuple(found.messages())
        tools = _tools(found.tools) if isinstance(found, _OpenAi | _Completion) else None
    except msgspec.ValidationError as error:
        raise ConversationError(
            origin,
            expected=f"a record such as {structure.example}",
            got=f"one that differs: {error}",
            cause=None if layout_of(record) is layout else f"data.conversations={layout.value} names another layout",
        ) from error
    except _WrongRecord as error:
        raise ConversationError(origin, error.expected, error.got, hint=error.hint) from error
    templated = not (isinstance(found, _Completion) and found.texts)
    return checked(Conversation(messages, origin, templated, tools))


def _tools(tools: list[dict[str, Any]] | str | None) -> tuple[Any, ...] | None:
    """Return the tools of a record; as a text, which columns of Parquet often have, they are JSON."""
    if isinstance(tools, str):
        try:
            tools = msgspec.json.decode(tools, type=list[dict[str, Any]]) if tools.strip() else None
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
            raise _WrongRecord("a list of tools as `tools`, or its JSON as a text", f"a text: {error}") from error
    if tools is None:
        return None
    _require_json(tools, "`tools`")
    return tuple(tools)


def _require_json(value: object, what: str) -> None:
    """Raise _WrongRecord for a value without a JSON type, such as a date of Parquet, or with too many levels."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        if not level:
            return
        other = next((each for each in level if not isinstance(each, _JSON_TYPES)), None)
        if other is not None:
            raise _WrongRecord(f"values that JSON has in {what}", f"one of the type {type(other).__name__}")
        level = [inner for each in level for inner in _inner(each)]
    raise _WrongRecord(f"at most {_MOST_LEVELS} levels in {what}", "more")


def _inner(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _type_name(record: object) -> str:
    return "null" if record is None else type(record).__name__


def _role(name: str, names: Mapping[str, Role], number: int) -> Role:
    if name not in names:
        raise _WrongRecord(f"{', '.join(names)} as the role of message {number}", repr(name[:80]))
    return names[name]


def _joined(content: str | list[_Part] | None, number: int) -> str:
    """Return the text of a message; parts of it follow each other directly."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            raise _WrongRecord(f"parts of text in message {number}", f"a part of the type {part.type[:80]!r}")
    return "".join(part.text or "" for part in content)
