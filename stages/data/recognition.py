"""The switch of the `tokenizers` library between special tokens that are tokens and those that are text.

The switch belongs to a vocabulary that several threads may share, and changing it while another thread encodes would
change that thread's ids. Guarantee: calls that need the same position run at the same time; a call that needs the other
position waits until none is running.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from threadloom.stages.config import SpecialTokens

if TYPE_CHECKING:  # 3 MB that only such tokenizers need
    import tokenizers


class Recognition:
    """The switch of one vocabulary, which nothing else may change."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._changed = threading.Condition()
        self._running = 0  # calls inside `using`; only it changes the number, under the condition

    @contextmanager
    def using(self, special: SpecialTokens) -> Iterator["tokenizers.Tokenizer"]:
        """Return the library's tokenizer with a treatment of special tokens for the duration of the block."""
        as_text = special is SpecialTokens.TEXT
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._tokenizer.encode_special_tokens == as_text)
            if self._tokenizer.encode_special_tokens != as_text:
                self._tokenizer.encode_special_tokens = as_text
            self._running += 1
        try:
            yield self._tokenizer
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
