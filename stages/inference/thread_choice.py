"""The choice between one thread and a team for the next token of a generation: whichever was faster lately.

The bits are the same, so the choice may depend on time. A team is slower than one thread on a machine whose processors
are busy with other work: its members then wait for each other. So some tokens are decoded by one thread first, and the
team has to be faster than that was; if it is not, one thread goes on, and the team has another trial later. A trial
ends as soon as it cannot be won, and after each one that is lost the next one is twice as far away.
"""

_ALONE, _TOGETHER = 4, 8
"""Tokens of a block, whose mean counts; the first one is left out, since it starts or wakes threads."""
_WAIT, _LONGEST_WAIT = 16, 256
"""Blocks of one thread before the second trial of the team, and between two trials at most."""


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
        self._wait = _WAIT

    def record(self, seconds: float) -> None:
        """Record the time of a token with `threads`, and choose those of the next one."""
        if self.most == 1:
            return
        self._seconds.append(seconds)
        if self.threads == 1:
            if len(self._seconds) == _ALONE:
                self._alone = self._mean()
                self._blocks_alone += 1
                self._choose()
        elif len(self._seconds) == _TOGETHER or sum(self._seconds[1:]) >= self._alone * (_TOGETHER - 1):
            if self._blocks_alone >= self._wait:
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
            self._together = self._mean()
            self._blocks_alone = 0
            if self._together < self._alone:
                self._wait = _WAIT
            self._choose()

    def _mean(self) -> float:
        """Return the mean of the block, which ends here."""
        counted = self._seconds[1:]
        self._seconds = []
        return sum(counted) / len(counted)

    def _choose(self) -> None:
        trial = self._blocks_alone >= self._wait
        self.threads = self.most if self._together < self._alone or trial else 1
