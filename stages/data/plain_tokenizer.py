"""The parts that tokenizers without special tokens share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import SpecialTokens
from threadloom.stages.data.text_parts import TextPart


class PlainTokenizer(ABC):
    """A tokenizer whose tokens are all text: none begins or ends one."""

    end_of_text: None = None
    beginning: NDArray[np.int32] = np.zeros(0, np.int32)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens; there are none."""
        return {}

    def with_special_tokens(self, special: SpecialTokens) -> Self:
        """Return this tokenizer, which has no special tokens."""
        return self

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of a text in chunks; raises as `encode_parts`."""
        for part in self.parts(chunks):
            yield from self.encode_parts([part])

    @abstractmethod
    def parts(self, chunks: Iterable[str]) -> Iterator[TextPart]:
        """Yield the parts of a text; see `Tokenizer`."""

    @abstractmethod
    def encode_parts(self, parts: Sequence[TextPart]) -> list[NDArray[np.int32]]:
        """Return the ids of each part; see `Tokenizer`."""
