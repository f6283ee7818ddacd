"""The parts of a rendered conversation that its template wrote, in which special tokens are recognised.

Somebody who writes <|im_end|> into a message must not end the turn with it. So the template renders the conversation
again with unguessable words in place of the contents: the text around them is its own. Where that is not possible,
because the template looks into the contents, only the special tokens in them are replaced by such words. So they are
if the calls of tools, or the tools, have special tokens: templates compare other texts in them, such as their types.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from threadloom.stages.data.conversations.conversation import (
    Conversation,
    ConversationError,
    Message,
    changed_texts,
)
from threadloom.stages.data.conversations.renderer import Refusal, TemplateRenderer, Wanted
from threadloom.stages.data.documents import Span

_CHANGES: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)
"""The changes of a content that templates make, of which usual ones make none or the second."""


def markup_spans(
    renderer: TemplateRenderer, conversation: Conversation, text: str, special: Sequence[str]
) -> tuple[Span, ...]:
    """Return the parts of `text`, a rendered conversation, that are not from its messages.

    `special` are the special tokens of the vocabulary. Raises ConversationError if special tokens in messages cannot
    be told from those of the template.
    """
    token = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
    found = None if _in_tools(conversation, token) else _around_contents(renderer, conversation, text)
    if found is None:
        found = _around_special(renderer, conversation, text, token)
    if found is None:
        raise ConversationError(
            conversation.origin,
            expected="messages without special tokens, or a chat template that writes messages as they are",
            got="special tokens in a message, which the template changes",
            cause=f"{renderer.template.name} looks into messages",
        )
    return found


def _around_contents(renderer: TemplateRenderer, conversation: Conversation, text: str) -> tuple[Span, ...] | None:
    """Return the parts of a text that are around its contents; None if the template depends on the contents."""
    words = _Words()
    messages = [replace(each, content=words.standing_for(each.content) if each.content else "") for each in
                conversation.messages]  # fmt: skip
    pieces = _pieces(renderer, messages, words, conversation.tools)
    if pieces is None:
        return None
    for change in _CHANGES:
        contents = {word: change(content) for word, content in words.contents.items()}
        if "".join(contents.get(piece, piece) for piece in pieces) == text:
            return tuple(_own(pieces, contents))
    return None


def _around_special(
    renderer: TemplateRenderer, conversation: Conversation, text: str, token: re.Pattern[str] | None
) -> tuple[Span, ...] | None:
    """Return the parts of a text that are around the special tokens in its contents and its tools."""
    if token is None:
        return (Span(0, len(text)),)
    words = _Words()

    def hidden(content: str) -> str:
        return token.sub(lambda found: words.standing_for(found[0]), content)

    messages = [each.with_texts(hidden) for each in conversation.messages]
    tools = changed_texts(conversation.tools, hidden)
    if not words.contents:
        return (Span(0, len(text)),)
    pieces = _pieces(renderer, messages, words, tools)
    if pieces is None or "".join(words.contents.get(piece, piece) for piece in pieces) != text:
        return None
    return tuple(_own(pieces, words.contents))


def _in_tools(conversation: Conversation, token: re.Pattern[str] | None) -> bool:
    """Return True if there are special tokens in the calls of tools, their results' names, or the tools."""
    if token is None or not conversation.has_tools:
        return False
    found = list[str]()

    def look(text: str) -> str:
        found.extend(token.findall(text))
        return text

    changed_texts([conversation.tools, *(message.further for message in conversation.messages)], look)
    return bool(found)


class _Words:
    """Unguessable words, each standing for a text."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(12)
        self.contents: dict[str, str] = {}
        """Word → the text that it stands for."""
        self.pattern = re.compile(f"({self._secret}[0-9]+x)")

    def standing_for(self, text: str) -> str:
        """Return a new word."""
        word = f"{self._secret}{len(self.contents)}x"
        self.contents[word] = text
        return word


def _pieces(
    renderer: TemplateRenderer, messages: Sequence[Message], words: _Words, tools: Sequence[Any] | None
) -> list[str] | None:
    """Return the rendered text of messages, split at the words; None if the template refuses it."""
    [found] = renderer.render(messages, [Wanted(len(messages))], tools)
    return None if isinstance(found, Refusal) else words.pattern.split(found.text)


def _own(pieces: Sequence[str], contents: Mapping[str, str]) -> Iterator[Span]:
    """Yield the ranges of pieces that are not words, in the text with the contents of the words."""
    position = 0
    for piece in pieces:
        end = position + len(contents.get(piece, piece))
        if piece not in contents and end > position:
            yield Span(position, end)
        position = end
