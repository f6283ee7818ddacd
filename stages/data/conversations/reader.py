"""From records to documents: conversations as their chat template writes them, with what counts in the loss."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from threadloom.stages.config import ConversationLayout
from threadloom.stages.data.conversations.conversation import Conversation
from threadloom.stages.data.conversations.layouts import read_conversation
from threadloom.stages.data.conversations.markup import markup_spans
from threadloom.stages.data.conversations.rendered import RenderedConversations, RenderedPass
from threadloom.stages.data.conversations.renderer import ChatTemplate, TemplateRenderer
from threadloom.stages.data.conversations.turns import rendered_turns
from threadloom.stages.data.documents import Document, Origin, Span


class ConversationReader:
    """Conversations as documents. A context manager: leaving the block ends the process of the template.

    The process starts with the first conversation that a template writes. For one thread at a time.
    """

    def __init__(
        self,
        template: ChatTemplate,
        special: Sequence[str] = (),
        layout: ConversationLayout | None = None,
        kept: RenderedConversations | None = None,
    ) -> None:
        """`special` are the special tokens of the vocabulary; a `layout` of None is recognised for each record.

        Conversations that are in `kept` are not rendered again. The template and the special tokens are the same for
        all that is in it.
        """
        self._template, self._special, self._layout, self._kept = template, special, layout, kept
        self._renderer: TemplateRenderer | None = None
        self._pass: tuple[Path, RenderedPass] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def document(self, record: object, origin: Origin) -> Document:
        """Return the document of a decoded record.

        Raises ConversationError for a record that is not a valid conversation or that the template refuses, and
        ChatTemplateError for a template that can be used for none.
        """
        conversation = read_conversation(record, origin, self._layout)
        return self._rendered_once(conversation) if conversation.templated else completion_document(conversation)

    def _rendered_once(self, conversation: Conversation) -> Document:
        if self._kept is None:
            return self._rendered(conversation)
        path = conversation.origin.path
        if self._pass is None or self._pass[0] != path:
            self._pass = path, self._kept.reading(path)
        found = self._pass[1].find(conversation)
        if found is None:
            found = self._rendered(conversation)
            self._pass[1].add(conversation, found)
        return found

    def _rendered(self, conversation: Conversation) -> Document:
        if self._renderer is None:
            self._renderer = TemplateRenderer(self._template)
        text, counted = rendered_turns(self._renderer, conversation)
        markup = markup_spans(self._renderer, conversation, text, self._special)
        return Document(text, conversation.origin, counted, markup)


def completion_document(conversation: Conversation) -> Document:
    """Return the texts of a prompt and its completion, which counts, one after the other."""
    prompt, completion = (message.content for message in conversation.messages)
    counted = Span(len(prompt), len(prompt) + len(completion))
    return Document(prompt + completion, conversation.origin, (counted,))
