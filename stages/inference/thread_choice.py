"""The choice between one thread and a team for the next token of a generation: whichever was faster lately.

The bits are the same, so the choice may depend on time. A team is slower than one thread on a machine whose processors
are busy with other work: its members then wait for each other. So some tokens are decoded by one thread first, and the
team has to be faster than that was; if it is not, one thread goes on, and the team has another trial later.
"""

_ALONE, _TOGETHER = 4, 8
"""Tokens of a block, whose mean counts; the first one is left out, since it starts or wakes threads."""
_WAIT = 16
"""Blocks of one thread between two trials of the team."""


class ThreadChoice:
    """The number of threads for each token, 1 or `most`, from the seconds that the last tokens took."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.threads = 1
        """Threads for the next token."""
        self._seconds: list[float] = []  # of the tokens of this block
        self._alone = float("inf")  # seconds per token of the last block of one thread, and of the team
        self._together = 0.0
        self._blocks_alone = 0  # since the last trial

    def record(self, seconds: float) -> None:
        """Record the time of a token with `threads`, and choose those of the next one."""
        if self.most == 1:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < (_ALONE if self.threads == 1 else _TOGETHER):
            return
        mean = sum(self._seconds[1:]) / (len(self._seconds) - 1)
        self._seconds.clear()
        if self.threads == 1:
            self._alone = mean
            self._blocks_alone += 1
        else:
            self._together = mean
            self._blocks_alone = 0
        trial = self._blocks_alone == _WAIT
        self.threads = self.most if self._together < self._alone or trial else 1
