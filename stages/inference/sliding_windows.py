"""The windows in which a text longer than the context is scored: each token once, after as many others as possible.

The first window has the first `context` tokens. It scores all of them from the first one that is scored, and the token
after the window. Each further window scores the next `stride` tokens, and has the `context` tokens before the last of
them; the last window scores the tokens that are left, which may be fewer. So all windows of a text of more than
`context` tokens have the same size, and from the second one on a token is scored after at least
``context - stride + 1`` others. With a stride of the context only the last window overlaps another one.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A range of tokens that a model reads, and how many of its predictions count."""

    start: int
    """Position of the first token."""
    inputs: int
    """Number of tokens."""
    scored: int
    """Number of tokens that are scored: the last of them is the one after the window."""


def sliding_windows(tokens: int, context: int, stride: int, given: int = 1) -> Iterator[Window]:
    """Yield the windows of a text of `tokens` tokens, of which the first `given` are not scored.

    `stride` is from 1 to `context`, as is `given`. There are none if no token is left to score.
    """
    if not 1 <= stride <= context or not 1 <= given <= context:
        raise ValueError(f"stride and given are from 1 to the context, {context}; got {stride} and {given}")
    end = min(context + 1, tokens)
    if end > given:
        yield Window(0, end - 1, end - given)
    while end < tokens:
        scored = min(stride, tokens - end)
        end += scored
        yield Window(end - 1 - context, context, scored)
