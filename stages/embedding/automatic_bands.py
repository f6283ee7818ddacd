"""Bands of the vocabulary by frequency, for an embedding whose rank follows a power of a token's frequency.

The rank of a band is in proportion to p^α, with p the mean frequency of its tokens (Ginart et al., 2019, arXiv
1909.11810): frequent tokens, which most of the loss is about, get more dimensions for α > 0, and fewer for α < 0. The
factor is the largest with which the bands have no more parameters than one rank for all tokens has.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bands = tuple[tuple[int, int], ...]

_SHARES = (64, 16, 4, 1)
"""The first band ends after a 64th of the vocabulary, and so on: each has three times the tokens of all before it."""
_MULTIPLE = 8
"""Ranks are multiples of it where the average rank is twice as large or more: GEMMs are made of such blocks."""


def bands_by_frequency(counts: NDArray[np.float64], rank: int, channels: int, alpha: float) -> Bands:
    """Return (tokens, rank) of bands of a vocabulary in the order of frequency.

    `counts` (V,) are those of the tokens; `rank` is below the channels. There are at most four bands, neighbours of one
    rank being one band, and fewer than four of a small vocabulary.
    """
    ends = sorted({max(len(counts) // share, 1) for share in _SHARES})
    tokens = np.diff([0, *ends])
    means = np.array([(part + 1.0).mean() for part in np.split(counts, ends[:-1])])
    wanted = (means / means.sum()) ** alpha
    budget = rank * (len(counts) + channels)

    def ranks(factor: float) -> NDArray[np.int64]:
        multiple = _MULTIPLE if rank >= 2 * _MULTIPLE else 1
        multiples = np.floor(factor * wanted / multiple).astype(np.int64) * multiple
        found: NDArray[np.int64] = np.clip(multiples, min(multiple, channels), channels)
        return found

    def parameters(found: NDArray[np.int64]) -> int:
        return int((found * tokens).sum() + (found[found < channels] * channels).sum())

    low, high = 0.0, channels / float(wanted.min())
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if parameters(ranks(middle)) <= budget else (low, middle)
    return _joined(tokens.tolist(), ranks(low).tolist())


def _joined(tokens: Sequence[int], ranks: Sequence[int]) -> Bands:
    """Return the bands with neighbours of one rank as one."""
    found: list[tuple[int, int]] = []
    for count, rank in zip(tokens, ranks, strict=True):
        if found and found[-1][1] == rank:
            count += found.pop()[0]
        found.append((count, rank))
    return tuple(found)
