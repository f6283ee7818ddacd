"""Documents of records that may be conversations: the registry of sources chooses this `DocumentMaker`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from threadloom.stages.config import ConversationLayout, DataConfig, TokenizerKind
from threadloom.stages.data.bpe_training import END_OF_TEXT
from threadloom.stages.data.conversations.layouts import KEYS, layout_of
from threadloom.stages.data.conversations.reader import ConversationReader
from threadloom.stages.data.conversations.rendered import RenderedConversations
from threadloom.stages.data.conversations.renderer import ChatTemplate
from threadloom.stages.data.conversations.templates import find_template
from threadloom.stages.data.documents import Document, Origin
from threadloom.stages.data.sources.field_documents import FieldDocuments
from threadloom.stages.data.sources.records import MakeDocument
from threadloom.stages.data.text_paths import text_path
from threadloom.stages.data.tokenizer_files import load_tokenizer
from threadloom.stages.models import EndOfText


@dataclass(frozen=True)
class ConversationDocuments:
    """Conversations as the chat template of a tokenizer writes them. Nothing is read before the first of them.

    Each is rendered once, however often its file is read.
    """

    layout: ConversationLayout | None
    """Layout of all records; None: recognised."""
    setting: str
    """The template, as `data.chat_template`."""
    tokenizer: TokenizerKind
    tokenizer_path: str
    scratch: Path | None = field(default=None, compare=False)
    """The folder of the temporary file with conversations that have been rendered; None: that of temporary files."""

    @classmethod
    def of(cls, data: DataConfig, scratch: Path | None = None) -> "ConversationDocuments":
        """Return the conversations of a configuration."""
        return cls(data.conversations, data.chat_template, data.tokenizer, data.tokenizer_path, scratch)

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns of a file that conversations are read from."""
        keys = next((keys for keys, layout in KEYS if keys <= set(names) and self.layout in (None, layout)), None)
        return [name for name in names if name in (*keys, "input", "system", "tools")] if keys else []

    def reader(self) -> ConversationReader:
        """Return a reader with the template; raises ChatTemplateError, TokenizerError."""
        template, special = self._found
        return ConversationReader(template, special, self.layout, self._kept)

    @property
    def template(self) -> ChatTemplate:
        """The template; raises ChatTemplateError, TokenizerError."""
        return self._found[0]

    @cached_property
    def _kept(self) -> RenderedConversations:
        return RenderedConversations(self.scratch)

    @cached_property
    def _found(self) -> tuple[ChatTemplate, tuple[str, ...]]:
        """The template, and the special tokens of the vocabulary."""
        if self.tokenizer is TokenizerKind.BPE:
            return find_template(self.setting, None, (END_OF_TEXT,), EndOfText(0, END_OF_TEXT)), (END_OF_TEXT,)
        if self.tokenizer is not TokenizerKind.PRETRAINED:
            return find_template(self.setting, None, (), None), ()
        path = text_path(self.tokenizer_path)
        tokenizer = load_tokenizer(path)
        special = tuple(tokenizer.special_tokens)
        folder: Path = path if path.is_dir() else path.parent
        return find_template(self.setting, folder, special, tokenizer.end_of_text), special


@dataclass(frozen=True)
class RecordDocuments:
    """The text of one field, or the conversation of a record without that field."""

    text: FieldDocuments
    conversations: ConversationDocuments

    @property
    def needs(self) -> str:
        """The field, or the first field of a conversation."""
        return self.text.needs if self.conversations.layout is None else min(_keys_of(self.conversations.layout))

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """Return the column of the text, or those of conversations."""
        text = self.text.columns(names) if self.conversations.layout is None else []
        return text or self.conversations.columns(names)

    def opened(self) -> AbstractContextManager[MakeDocument]:
        """Return a context in which records become documents; its process starts with the first conversation."""
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[MakeDocument]:
        readers: list[ConversationReader] = []

        def make(fields: Mapping[str, Any], origin: Origin) -> Document:
            if not self._is_conversation(fields):
                return self.text.document(fields, origin)
            if not readers:
                readers.append(self.conversations.reader())
            return readers[0].document(fields, origin)

        try:
            yield make
        finally:
            for reader in readers:
                reader.close()

    def _is_conversation(self, fields: Mapping[str, Any]) -> bool:
        if self.conversations.layout is not None:
            return True
        return not self.text.columns(list(fields)) and layout_of(fields) is not None


def _keys_of(layout: ConversationLayout) -> frozenset[str]:
    return next(keys for keys, other in KEYS if other is layout)
