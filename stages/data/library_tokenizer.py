"""Tokenizers in Hugging Face's format: a tokenizer.json of any kind that the `tokenizers` library reads.

Examples are the byte-level tokenizers of GPT-2, Llama 3, Qwen and SmolLM, and those of Llama 2 and Mistral, which were
converted from SentencePiece. A text is encoded in chunks on all cores; `stages.data.text_boundaries` finds where it can
be cut.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threadloom.pipeline import available_cores
from threadloom.stages.config import SpecialTokens
from threadloom.stages.data.bpe_training import END_OF_TEXT, limit_library_threads
from threadloom.stages.data.counted_tokens import counted_tokens
from threadloom.stages.data.documents import Document, EncodedDocument, Span
from threadloom.stages.data.markup import Marked, Marker, Special, in_spans, merged, pattern_of
from threadloom.stages.data.recognition import Recognition
from threadloom.stages.data.text_boundaries import find_boundaries
from threadloom.stages.data.text_parts import TextPart
from threadloom.stages.data.text_splitting import CHUNK, Splitter
from threadloom.stages.data.tokenizer import TokenizerError, utf8_bytes, validated_ids
from threadloom.stages.models import EndOfText

if TYPE_CHECKING:  # 3 MB that only such tokenizers need
    import tokenizers

CHUNKS_PER_CORE = 2
"""Chunks that are encoded at a time, per core."""


class _Encoded(NamedTuple):
    """Ids of a text (N,) and the characters [start, end) of each."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class LibraryTokenizer:
    """A tokenizer that the `tokenizers` library implements. Any number of threads may use it.

    Truncation and padding in the file are not applied, and neither is dropout of merges.
    """

    def __init__(self, content: str, end_of_text: str | None = None) -> None:
        """Raise ValueError unless `content` is that of a tokenizer.json.

        `end_of_text` is the text of the token that ends a text; None: that of GPT-2, if the vocabulary contains it.
        """
        self._content = content
        self._tokenizer = _library_tokenizer(content)
        # It trims the characters of tokens, and adds tokens only where it is called.
        self._post_processor, self._tokenizer.post_processor = self._tokenizer.post_processor, None
        self._recognition = Recognition(self._tokenizer)
        self._special = SpecialTokens.TEXT
        self._end_of_text = END_OF_TEXT if end_of_text is None else end_of_text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._ids_with_text = np.unique(np.array(list(vocabulary.values()), np.int64))
        self._specials = {
            found.content: number
            for number, found in self._tokenizer.get_added_tokens_decoder().items()
            if found.special and found.content
        }
        self._marker = Marker(self._tokenizer)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included."""
        return 1 + int(self._ids_with_text.max(initial=-1))

    @property
    def end_of_text(self) -> EndOfText | None:
        """The token that ends a text, if the vocabulary contains it."""
        found = self._tokenizer.token_to_id(self._end_of_text)
        return None if found is None else EndOfText(found, self._end_of_text)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens, text → id."""
        return self._specials

    @cached_property
    def beginning(self) -> NDArray[np.int32]:
        """The ids (N,) that the tokenizer's post-processor puts before a text, such as that of <s>."""
        if self._post_processor is None:
            return np.zeros(0, np.int32)
        encoding = self._post_processor.process(self._tokenizer.encode("a", add_special_tokens=False), None, True)
        mask = encoding.special_tokens_mask
        return np.array(encoding.ids[: mask.index(0) if 0 in mask else 0], np.int32)

    def with_special_tokens(self, special: SpecialTokens) -> Self:
        """Return the tokenizer with another treatment of special tokens in a text; it shares the vocabulary."""
        other = copy.copy(self)
        other._special = special
        return other

    def ids_with_text(self) -> NDArray[np.int64]:
        """Return the ids of all tokens: there may be gaps between them."""
        return self._ids_with_text

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text; raises TokenizerError for a lone surrogate."""
        if len(text) <= CHUNK:
            utf8_bytes(text)
            return self.encode_parts([TextPart(text)])[0]
        return np.concatenate([np.zeros(0, np.int32), *self.encode_chunks([text])])

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of a text in chunks, which are encoded on all cores.

        Python handles signals between batches of chunks, each of which takes a fraction of a second.
        """
        parts = self.parts(chunks)
        while batch := list(islice(parts, CHUNKS_PER_CORE * available_cores())):
            yield from self.encode_parts(batch)

    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the parts of a text in chunks; raises TokenizerError for a lone surrogate."""
        previous, overlap, position = "", self._splitter.overlap, 0
        for text in self._splitter.chunks(_valid(chunks)):
            yield TextPart(text, previous[-overlap:] if overlap else "", position)
            previous, position = text, position + len(text)

    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part. The library encodes them on all cores, without the GIL."""
        shared = [part.before for part in parts]
        found = self._ids([part.before + part.text for part in parts], self._special)
        removed = self._ids(shared, self._special) if any(shared) else [np.zeros(0, np.int32)] * len(parts)
        return [ids[len(before) :] for ids, before in zip(found, removed, strict=True)]

    def encode_document(self, document: Document) -> EncodedDocument:
        """Return the ids of a document; raises TokenizerError for a lone surrogate.

        Special tokens are recognised in its markup only, if that is known. They do not depend on the text around it.
        """
        if document.markup is None and document.counted is None:
            return EncodedDocument(self.encode(document.text))
        if document.markup is None:
            encoded = self._encoded(document.text, self._special)
        else:
            marked = self._marked(document.text, document.markup)
            found = self._encoded(marked.text, SpecialTokens.TEXT)
            starts, ends = (marked.original(place) for place in (found.starts, found.ends))
            encoded = _Encoded(self._marker.replace(found.ids, marked.specials), starts, ends)
        if document.counted is None:
            return EncodedDocument(encoded.ids)
        return EncodedDocument(encoded.ids, counted_tokens(encoded.starts, encoded.ends, document.counted))

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids, with U+FFFD for an incomplete character at the end."""
        return self._tokenizer.decode(validated_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def decode_following(self, ids: ArrayLike) -> str:
        """Return the text of ids that follow a visible character, with U+FFFD for an incomplete one at the end."""
        first, before = self._visible
        text = self._tokenizer.decode(
            [*first, *validated_ids(ids, self.vocab_size).tolist()], skip_special_tokens=False
        )
        return text[len(before) :] if text.startswith(before) else self.decode(ids)

    def save(self, path: Path) -> None:
        """Write the tokenizer.json as it was read."""
        path.write_text(self._content, encoding="utf-8")

    @cached_property
    def _visible(self) -> tuple[list[int], str]:
        """The ids of a visible character, and their text."""
        ids = self._ids(["a"], self._special)[0].tolist()
        return ids, self._tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def _splitter(self) -> Splitter:
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        with self._recognition.using(self._special) as tokenizer:
            boundaries = find_boundaries(tokenizer)
        plain = self._tokenizer.normalizer is None and boundaries.exact and not boundaries.overlap
        return Splitter(self._tokenizer.pre_tokenizer if plain else None, added, boundaries)

    @cached_property
    def _leaks(self) -> dict[int, NDArray[np.int32]]:
        """The special tokens that the model makes of their text though they are not recognised, with the ids instead.

        Models of the kinds Unigram and WordLevel may find any entry of their vocabulary in a text. The ids instead are
        those of the characters of the token, each alone.
        """
        texts = list(self._specials)
        leaks = [text for text, ids in zip(texts, self._library_ids(texts), strict=True) if self._specials[text] in ids]
        unknown = _unknown_token(self._content) if leaks else None
        return {
            self._specials[text]: np.concatenate(self._library_ids(list(text)))
            for text in leaks
            if self._specials[text] != unknown and text != unknown and len(text) > 1
        }

    def _library_ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of texts in which special tokens are not recognised, by the model alone."""
        return [np.array(found.ids, np.int32) for found in self._encodings(texts, SpecialTokens.TEXT)]

    def _ids(self, texts: Sequence[str], special: SpecialTokens) -> list[NDArray[np.int32]]:
        """Return the ids of each text."""
        found = [np.array(encoding.ids, np.int32) for encoding in self._encodings(texts, special)]
        if special is SpecialTokens.TOKENS or not self._leaks:
            return found
        return [self._as_text(ids)[0] if self._leaking(ids).any() else ids for ids in found]

    def _leaking(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.isin(ids, list(self._leaks))

    def _as_text(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """Return ids with others in place of leaks, and the place (N,) of each in `ids`."""
        parts = [self._leaks.get(int(number), np.array([number], np.int32)) for number in ids]
        counts = [len(part) for part in parts]
        return np.concatenate([np.zeros(0, np.int32), *parts]), np.repeat(np.arange(len(ids)), counts)

    def _encoded(self, text: str, special: SpecialTokens) -> _Encoded:
        """Return the ids of a text of any length, with their characters."""
        found = [_Encoded(np.zeros(0, np.int32), *np.zeros((2, 0), np.int64))]
        parts = self.parts([text]) if len(text) > CHUNK else iter([TextPart(text)])
        utf8_bytes(text)
        while batch := list(islice(parts, CHUNKS_PER_CORE * available_cores())):
            shared = [part.before for part in batch]
            removed = self._encodings(shared, special) if any(shared) else [None] * len(batch)
            whole = self._encodings([part.before + part.text for part in batch], special, offsets=True)
            for part, encoding, before in zip(batch, whole, removed, strict=True):
                first = len(before.ids) if before else 0
                ids, offsets = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
                places: NDArray[np.intp] = np.arange(len(ids))
                if special is SpecialTokens.TEXT and self._leaks and self._leaking(ids).any():
                    ids, places = self._as_text(ids)
                offsets = offsets[places] + (part.position - len(part.before))
                found.append(_Encoded(ids[first:], offsets[first:, 0], offsets[first:, 1]))
        return _Encoded(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def _marked(self, text: str, markup: Sequence[Span]) -> Marked:
        """Return a text with markers for the special tokens in its markup."""
        pattern = pattern_of(list(self._specials))
        spans = [span for span in merged(markup) if pattern and pattern.search(text, span.start, span.end)]
        found = self._encodings([text[span.start : span.end] for span in spans], SpecialTokens.TOKENS, offsets=True)
        specials = [
            [
                Special(number, start, end)
                for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if number in self._contents and self._contents[number] in text[span.start + start : span.start + end]
            ]
            for span, encoding in zip(spans, found, strict=True)
        ]
        return self._marker.mark(text, in_spans(spans, specials))

    @cached_property
    def _contents(self) -> dict[int, str]:
        """Id → text of the special tokens."""
        return {number: text for text, number in self._specials.items()}

    def _encodings(
        self, texts: Sequence[str], special: SpecialTokens, *, offsets: bool = False
    ) -> "list[tokenizers.Encoding]":
        """Return the library's encoding of each text."""
        with self._recognition.using(special) as tokenizer:
            encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
            try:
                return encode(texts, add_special_tokens=False)
            except Exception as error:  # the library raises nothing more specific
                raise TokenizerError(
                    "the text",
                    expected="a text that the tokenizer can encode",
                    got=str(error),
                    cause="its vocabulary lacks a token for unknown characters",
                    hint="use a tokenizer with an unknown token, or remove those characters",
                ) from error


def _library_tokenizer(content: str) -> "tokenizers.Tokenizer":
    """Return the library's tokenizer without what makes encodings shorter, padded or random; raises ValueError."""
    limit_library_threads()
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"not a tokenizer.json of Hugging Face ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, tokenizers.models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def _unknown_token(content: str) -> str | int | None:
    """Return the text or the id of the token for unknown characters in a tokenizer.json, if there is one."""
    model = json.loads(content)["model"]
    unknown: str | int | None = model.get("unk_token", model.get("unk_id"))
    return unknown


def _valid(chunks: Iterable[str]) -> Iterator[str]:
    """Yield chunks; raises TokenizerError for a lone surrogate, which the library cannot encode."""
    position = 0
    for chunk in chunks:
        utf8_bytes(chunk, position)
        yield chunk
        position += len(chunk)
