"""The places where a text can be cut without changing its tokens, found by trying the tokenizer.

The ids of a text are those of its parts, one after another, if no token reaches across a cut. After a line end between
two visible characters, and before a single space between two, this is so

- if the pre-tokenizer cuts there itself (byte-level tokenizers, whose regular expressions separate words), or
- if no token of the vocabulary has a visible character after a line end, or a space after a visible character: then no
  sequence of merges reaches across (the tokenizers of SentencePiece, which have no pre-tokenizer).

A tokenizer may also treat the beginning of a text differently, as Llama 2 does, which puts a space there. Then a part
is encoded together with the last character of the previous part, whose ids are removed (`Boundaries.overlap`). All of
this is checked on pairs of characters of different kinds. A tokenizer that fails the check gets its texts in lines.
"""

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # 3 MB that only such tokenizers need
    from tokenizers import Tokenizer

LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
WORD_END = re.compile(r"(?<=\S)(?= \S)")

_CHARACTERS = ("a", "Z", "é", "7", ".", "'", "_", "(", "猫", "ا", "🙂", "the", "42", "--")
"""Visible characters of different kinds, and short words, that the check is made of."""


class Cut(enum.Enum):
    """The kinds of places, each with the text between two visible characters; the cut is before or after it."""

    LINE_END = "\n"
    """After the line end."""
    WORD_END = " "
    """Before the space."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """The expression whose match ends at the cut."""
        return LINE_END if self is Cut.LINE_END else WORD_END

    def parts(self, left: str, right: str) -> tuple[str, str]:
        """Return the two parts of a text that the separator joins."""
        return (left + self.value, right) if self is Cut.LINE_END else (left, self.value + right)


@dataclass(frozen=True)
class Boundaries:
    """Where a text can be cut for a tokenizer."""

    cuts: tuple[Cut, ...]
    """Kinds of places, in order of preference."""
    overlap: int = 0
    """Characters of the previous part, 0 or 1, with which each part but the first is encoded."""
    exact: bool = True
    """True: the ids of the parts are those of the whole text. False: each part is encoded as a text."""


WORDS = Boundaries((Cut.LINE_END, Cut.WORD_END))
"""The boundaries of the byte-level tokenizers whose pre-tokenizer separates words, such as that of GPT-2."""


def find_boundaries(tokenizer: "Tokenizer") -> Boundaries:
    """Return where texts can be cut for a tokenizer."""
    possible = [cut for cut in Cut if _separates(tokenizer, cut)]
    for overlap in (0, 1):
        if cuts := tuple(cut for cut in possible if _ids_of_parts_are_equal(tokenizer, cut, overlap)):
            return Boundaries(cuts, overlap)
    return Boundaries((Cut.LINE_END,), exact=False)


def _separates(tokenizer: "Tokenizer", cut: Cut) -> bool:
    """Return True if no token reaches across a cut: by the pre-tokenizer, or for lack of such tokens."""
    pre_tokenizer = tokenizer.pre_tokenizer
    if pre_tokenizer is not None and all(
        _cuts_at(pre_tokenizer.pre_tokenize_str, *cut.parts(left, right)) for left, right in _pairs()
    ):
        return True
    spaces = "[ ĠĊ▁\n]"  # as they are, of byte-level tokenizers, of SentencePiece
    across = re.compile(f"[Ċ\n](?!{spaces})." if cut is Cut.LINE_END else f"(?!{spaces}).[ Ġ▁]", re.DOTALL)
    return not any(across.search(token) for token in tokenizer.get_vocab(with_added_tokens=False))


def _cuts_at(words: Callable[[str], Sequence[tuple[str, tuple[int, int]]]], left: str, right: str) -> bool:
    return any(start == len(left) for _, (start, _) in words(left + right))


def _ids_of_parts_are_equal(tokenizer: "Tokenizer", cut: Cut, overlap: int) -> bool:
    """Return True if the ids of parts, the second with `overlap` characters of the first, make up those of the text."""
    parts = [cut.parts(left, right) for left, right in _pairs()]
    texts: list[str] = []
    for left, right in parts:
        shared = left[len(left) - overlap :]
        texts += [left + right, left, shared + right, shared]
    found = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return all(
        whole == left + right[len(shared) :] and right[: len(shared)] == shared
        for whole, left, right, shared in zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
    )


def _pairs() -> list[tuple[str, str]]:
    return list(product(_CHARACTERS, _CHARACTERS))
