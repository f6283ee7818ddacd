"""Conversations: messages with roles, whatever the layout of the record that they were read from."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from threadloom.stages.data.documents import Origin
from threadloom.stages.data.sources.records import RecordError

ABSENT = object()
"""The value of a field that a message does not have."""


class ConversationError(RecordError):
    """A record that is not a conversation, or one that the chat template refuses."""


class Role(enum.Enum):
    """The authors of messages; the values are the names that chat templates compare with."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    counted: bool = True
    """False for a turn of the assistant whose loss does not count."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Other fields that the template sees, such as `tool_calls`; a turn of calls alone has an `ABSENT` content."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that the template sees; those that are `ABSENT` the record does not have."""
        found = {"role": self.role.value, "content": self.content, **self.further}
        return {name: value for name, value in found.items() if value is not ABSENT}

    @property
    def calls_tools(self) -> bool:
        """True if the turn has calls of tools."""
        return bool(self.further.get("tool_calls"))

    @property
    def called(self) -> list[str]:
        """Names of the tools that the turn calls, of calls as OpenAI writes them and of such without `function`."""
        functions = (call.get("function", call) for call in self.further.get("tool_calls", ()))
        names = (function.get("name") for function in functions if isinstance(function, Mapping))
        return [name for name in names if isinstance(name, str)]

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Return the message with its content and every text of the further fields changed."""
        return replace(self, content=change(self.content), further=changed_texts(self.further, change))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A valid conversation: at least one turn of the assistant counts, and all of these have a text or call tools."""

    messages: tuple[Message, ...]
    origin: Origin
    templated: bool = True
    """False for a prompt with its completion, whose texts follow each other as they are."""
    tools: tuple[Any, ...] | None = None
    """The tools that the assistant may call, as JSON values: variable `tools` of the template."""

    @property
    def has_tools(self) -> bool:
        """True if texts other than the contents of messages are in the conversation."""
        return bool(self.tools) or any(message.further for message in self.messages)


def changed_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text in it changed, also those that are keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {changed_texts(key, change): changed_texts(each, change) for key, each in value.items()}
    return [changed_texts(each, change) for each in value] if isinstance(value, list | tuple) else value


def checked(conversation: Conversation) -> Conversation:
    """Return a conversation; raises ConversationError for one without anything to learn, or with a text not Unicode."""
    origin, messages = conversation.origin, conversation.messages
    if not messages:
        raise ConversationError(origin, expected="a conversation with messages", got="an empty list of them")
    for number, message in enumerate(messages, start=1):
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            raise ConversationError(
                origin,
                expected="a text that UTF-8 can encode",
                got=f"the lone surrogate U+{ord(message.content[error.start]):04X}",
                cause="half of a character outside the basic plane was written as an escape",
                part=f"message {number}",
            ) from error
        if message.role is Role.ASSISTANT and not message.content.strip() and not message.calls_tools:
            raise ConversationError(
                origin,
                expected="a turn of the assistant with text or calls of tools, from which the model learns",
                got=f"one with {len(message.content):,} characters of white space"
                if message.content
                else "an empty one",
                part=f"message {number}",
            )
    if not any(message.role is Role.ASSISTANT and message.counted for message in messages):
        assistants = sum(message.role is Role.ASSISTANT for message in messages)
        raise ConversationError(
            origin,
            expected="a conversation with a turn of the assistant whose loss counts",
            got=f"{len(messages)} messages, {assistants} of the assistant" + (", all of weight 0" * bool(assistants)),
        )
    return conversation
