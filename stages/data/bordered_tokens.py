"""A token file whose documents end at borders: windows know where they begin, and no target lies beyond a border."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import ConfigError
from threadloom.stages.data.token_file import IGNORED_TARGET, TokenFile


def documents_of(tokens: TokenFile, setting: str) -> NDArray[np.int64]:
    """Return the positions of the documents of a token file; raises ConfigError, which names a setting, without any."""
    if tokens.documents is None:
        raise ConfigError(
            setting,
            expected="a text of documents, such as files of JSON Lines or Parquet",
            got=f"one running text in {tokens.path}",
            hint="leave the setting out, or set data.packing=documents too, with which each file is a document",
        )
    return tokens.documents


class BorderedTokenFile(TokenFile):
    """A token file read in windows in which the first token of a document is never a target.

    It would be the target of the last token of the document before it, of which nothing can be seen across the border.
    """

    def __init__(self, tokens: TokenFile) -> None:
        """Read another token file, which has documents; raises ConfigError if it has none."""
        documents = documents_of(tokens, "data.borders")
        super().__init__(
            tokens.ids, tokens.vocab_size, tokens.context, tokens.path, documents=documents, counted=tokens.counted
        )
        self._order = tokens._order
        self._first_tokens = documents

    @property
    def all_count(self) -> bool:
        """False: first tokens do not count."""
        return False

    def read(self, start: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Write the window at `start`; see `TokenFile`."""
        super().read(start, ids, targets)
        targets[self._begun(start + 1, start + 1 + self.context)] = IGNORED_TARGET

    def targets_counted(self, starts: Iterable[int]) -> int:
        """Return how many targets count in the windows that begin at `starts`, which may overlap."""
        return sum(map(self._targets_counted, starts))

    def _targets_counted(self, start: int) -> int:
        first, end = start + 1, start + 1 + self.context
        begun = self._begun(first, end)
        if self.counted is None:
            return self.context - len(begun)
        return int(np.count_nonzero(self.counted[first:end])) - int(np.count_nonzero(self.counted[first:end][begun]))

    def write_starts(self, start: int, starts: NDArray[np.int32]) -> None:
        """Write the row at which the document of each row of a window begins to `starts` (T,)."""
        starts.fill(0)
        begun = self._begun(start, start + self.context)
        starts[begun] = begun
        np.maximum.accumulate(starts, out=starts)

    def _begun(self, first: int, end: int) -> NDArray[np.int64]:
        """Return the distances from `first` of the first tokens that lie before `end`."""
        low, high = np.searchsorted(self._first_tokens, (first, end))
        begun: NDArray[np.int64] = np.unique(self._first_tokens[low:high]) - first
        return begun
