"""Conversations: messages with roles, whatever the layout of the record that they were read from."""

import enum
from dataclasses import dataclass

from threadloom.stages.data.documents import Origin
from threadloom.stages.data.sources.records import RecordError


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


@dataclass(frozen=True, slots=True)
class Conversation:
    """A valid conversation: at least one turn of the assistant counts, and all of these have a text."""

    messages: tuple[Message, ...]
    origin: Origin
    templated: bool = True
    """False for a prompt with its completion, whose texts follow each other as they are."""


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
        if message.role is Role.ASSISTANT and not message.content.strip():
            raise ConversationError(
                origin,
                expected="a turn of the assistant with text, from which the model learns",
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
