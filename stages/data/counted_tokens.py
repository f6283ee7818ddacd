"""The tokens of a document whose loss counts, from the characters that count."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.documents import Document, EncodedDocument, Span


def counted_tokens(starts: NDArray[Any], ends: NDArray[Any], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return whether each token (N,) overlaps one of the spans, which are in ascending order.

    `starts` and `ends` (N,) are the characters of the tokens. A token without characters, such as the space that a
    tokenizer puts before a text, stands for the character at its place.
    """
    kept = [span for span in spans if span.end > span.start]
    if not kept:
        return np.zeros(len(starts), np.bool_)
    first, last = np.array(kept, np.int64).T
    following = np.searchsorted(last, starts, side="right")  # the first span that ends after the token begins
    begins = first[np.minimum(following, len(kept) - 1)]
    overlap: NDArray[np.bool_] = (following < len(kept)) & (begins < np.maximum(ends, starts + 1))
    return overlap


def of_characters(document: Document, ids: NDArray[np.int32], starts: NDArray[Any]) -> EncodedDocument:
    """Return a document whose tokens (N,) are at most one character each; `starts` (N,) are those characters."""
    if document.counted is None:
        return EncodedDocument(ids)
    return EncodedDocument(ids, counted_tokens(starts, starts + 1, document.counted))
