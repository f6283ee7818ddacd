"""Lengths of documents in tokens, and documents that occur more than once, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.token_file import TokenFile

PERCENTS = (0, 5, 25, 50, 75, 95, 100)
"""Percentiles that are reported."""
MOST_HASHES = 1 << 23
"""Documents that are compared exactly, with 8 bytes each: 64 MiB."""

_LONGEST = 1 << 20
"""Tokens up to which lengths are counted one by one; the percentiles of longer documents are this number."""
_BLOCK = 1 << 18


class Repeats(msgspec.Struct, frozen=True):
    """Documents that are equal to an earlier one, by a hash of their tokens."""

    training: int
    """Those of the training split that are equal to an earlier one there."""
    validation: int
    """Those of the validation split that are equal to one of the training split, or an earlier one there."""
    compared: float
    """Share of the documents that were compared, chosen by their hash: a document and its copies, or none of them."""


def length_percentiles(files: Sequence[TokenFile]) -> dict[str, int] | None:
    """Return percent → number of tokens of the documents of some files; None if they have none."""
    counts = np.zeros(_LONGEST + 1, np.int64)
    longest = 0
    for lengths in (found for file in files for found in _lengths(file)):
        counts += np.bincount(np.minimum(lengths, _LONGEST), minlength=len(counts))
        longest = max(longest, int(lengths.max()))
    if not counts.any():
        return None
    ranks = np.cumsum(counts)
    places = [max(1, -(-percent * int(ranks[-1]) // 100)) for percent in PERCENTS]
    found = {f"{percent}": int(np.searchsorted(ranks, place)) for percent, place in zip(PERCENTS, places, strict=True)}
    return found | {"100": longest}


def repeated_documents(training: TokenFile, validation: TokenFile, limit: int = MOST_HASHES) -> Repeats | None:
    """Return the repeated documents; None if the files have none. Of more than `limit` documents, a share is compared.

    Documents are compared by 64 bits of a hash of their tokens.
    """
    if training.documents is None or validation.documents is None:
        return None
    documents = len(training.documents) + len(validation.documents)
    parts = -(-documents // limit)
    train, held_out = (np.sort(_hashes(file, parts)) for file in (training, validation))
    distinct = np.unique(train)
    known = distinct[np.minimum(np.searchsorted(distinct, held_out), len(distinct) - 1)] if len(distinct) else held_out
    inside = int((known == held_out).sum()) if len(distinct) else 0
    new = held_out[known != held_out] if len(distinct) else held_out
    return Repeats(len(train) - len(distinct), inside + len(new) - len(np.unique(new)), 1 / parts)


def _lengths(file: TokenFile) -> Iterator[NDArray[np.int64]]:
    """Yield the lengths of documents in blocks."""
    if file.documents is None:
        return
    for start in range(0, len(file.documents), _BLOCK):
        positions = np.asarray(file.documents[start : start + _BLOCK + 1])
        if start + _BLOCK >= len(file.documents):
            positions = np.append(positions, len(file))
        yield np.diff(positions)


def _hashes(file: TokenFile, parts: int) -> NDArray[np.uint64]:
    """Return the hashes of the documents that `parts` divides."""
    assert file.documents is not None
    kept = list[NDArray[np.uint64]]()
    start = 0
    for lengths in _lengths(file):
        found = np.empty(len(lengths), np.uint64)
        for number, length in enumerate(lengths.tolist()):
            content = np.ascontiguousarray(file.ids[start : start + length]).data
            found[number] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
            start += length
        kept.append(found[found % np.uint64(parts) == 0])
    return np.concatenate([np.zeros(0, np.uint64), *kept])
