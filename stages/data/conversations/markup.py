"""The parts of a rendered conversation that its template wrote, in which special tokens are recognised.

Somebody who writes <|im_end|> into a message must not end the turn with it. So the template renders the conversation
again with unguessable words in place of the contents: the text around them is its own. Where that is not possible,
because the template looks into the contents, only the special tokens in them are replaced by such words.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from threadloom.stages.data.conversations.conversation import Conversation, ConversationError, Message
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
    found = _around_contents(renderer, conversation, text)
    if found is None:
        found = _around_special(renderer, conversation, text, special)
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
    pieces = _pieces(renderer, messages, words)
    if pieces is None:
        return None
    for change in _CHANGES:
        contents = {word: change(content) for word, content in words.contents.items()}
        if "".join(contents.get(piece, piece) for piece in pieces) == text:
            return tuple(_own(pieces, contents))
    return None


def _around_special(
    renderer: TemplateRenderer, conversation: Conversation, text: str, special: Sequence[str]
) -> tuple[Span, ...] | None:
    """Return the parts of a text that are around the special tokens in its contents."""
    if not special:
        return (Span(0, len(text)),)
    words, longest_first = _Words(), sorted(special, key=len, reverse=True)
    token = re.compile("|".join(map(re.escape, longest_first)))
    messages = [
        replace(each, content=token.sub(lambda found: words.standing_for(found[0]), each.content))
        for each in conversation.messages
    ]
    if not words.contents:
        return (Span(0, len(text)),)
    pieces = _pieces(renderer, messages, words)
    if pieces is None or "".join(words.contents.get(piece, piece) for piece in pieces) != text:
        return None
    return tuple(_own(pieces, words.contents))


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


def _pieces(renderer: TemplateRenderer, messages: Sequence[Message], words: _Words) -> list[str] | None:
    """Return the rendered text of messages, split at the words; None if the template refuses it."""
    [found] = renderer.render(messages, [Wanted(len(messages))])
    return None if isinstance(found, Refusal) else words.pattern.split(found.text)


def _own(pieces: Sequence[str], contents: Mapping[str, str]) -> Iterator[Span]:
    """Yield the ranges of pieces that are not words, in the text with the contents of the words."""
    position = 0
    for piece in pieces:
        end = position + len(contents.get(piece, piece))
        if piece not in contents and end > position:
            yield Span(position, end)
        position = end
