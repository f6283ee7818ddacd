"""Threads that divide the work of every token of a generation with their caller.

The caller is the first member of a team (`kernels.common.team`). The other members are started for the first token.
Between two tokens they look for the next one for a millisecond, and then sleep: starting them again would take a part
of a short token. They end when the owner closes
them, when a member fails or the caller is interrupted, and by themselves after `_IDLE_SECONDS` without work: so a
generation that nobody continues keeps no thread, and the interpreter can exit. The next token starts new ones.

A member that fails sets the team's `stop`: the others leave the meetings at which they wait, and the call raises the
error.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

import numpy as np

from threadloom.kernels.common import Team, look_for, make_team

Work = Callable[[Team], object]
"""The work of one member, whose place in the team is the argument."""

_IDLE_SECONDS = 0.2


class MemberThreads:
    """A team of `members` threads, the caller included. One thread at a time may use it."""

    def __init__(self, members: int) -> None:
        self.members = members
        self._alone = make_team(1, 0, np.zeros(1, np.int64))[0]
        self._shift: _Shift | None = None

    def run(self, work: Work, members: int) -> None:
        """Call `work` for all members at the same time, or in the caller alone; raises the first error of a member.

        `members` is their number, all or 1. `work` must end with a meeting of all of them.
        """
        if members == 1:
            work(self._alone)
            return
        try:
            self._begin(work).take_part(work)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads and wait for them; they are started again when there is work."""
        shift, self._shift = self._shift, None
        if shift is not None:
            shift.end()

    def _begin(self, work: Work) -> "_Shift":
        """Hand `work` to the threads, after starting them if there are none."""
        shift = self._shift
        if shift is None or not shift.hand_out(work):
            self.close()
            self._shift = shift = _Shift(self.members)
            shift.start(work)
        return shift


class _Shift:
    """The life of a team's threads, from their start until one of them, or the caller, ends it."""

    def __init__(self, members: int) -> None:
        self._stop = np.zeros(1, np.int64)  # only ever set to 1
        self._places = make_team(members, 0, self._stop)
        self._handed = np.zeros(1, np.int64)  # works after the first one; modified under `_door`
        self._mailboxes = [SimpleQueue[Work | None]() for _ in range(members - 1)]
        self._threads: list[threading.Thread] = []  # those that were started
        self._errors: list[BaseException] = []
        self._door = threading.Lock()  # held to hand out work, and to leave for want of it
        self._left = False  # True once a thread has left; modified under `_door`

    def start(self, work: Work) -> None:
        """Start the threads with their first work."""
        caller = threading.current_thread().name
        for place, mailbox in zip(self._places[1:], self._mailboxes, strict=True):
            mailbox.put(work)
            name = f"{caller}, member {place.member}"
            thread = threading.Thread(target=self._serve, args=(place, mailbox), name=name)
            thread.start()
            self._threads.append(thread)

    def hand_out(self, work: Work) -> bool:
        """Give every thread the work; return False if they have left (or do not exist, after a fork)."""
        with self._door:
            if self._left or not all(thread.is_alive() for thread in self._threads):
                return False
            for mailbox in self._mailboxes:
                mailbox.put(work)
            self._handed[0] += 1
        return True

    def take_part(self, work: Work) -> None:
        """Do the caller's part of work that was handed out; raise the first error of a thread."""
        work(self._places[0])
        if self._stop[0]:
            raise self._errors[0]

    def end(self) -> None:
        """End all waits and all threads, and wait for these."""
        self._stop[0] = 1
        for mailbox in self._mailboxes:
            mailbox.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, place: Team, mailbox: "SimpleQueue[Work | None]") -> None:
        wanted = 0
        while (work := self._next(mailbox, wanted)) is not None:
            wanted += 1
            try:
                work(place)
            except BaseException as error:  # raised in the thread of the caller
                self._errors.append(error)
                self._stop[0] = 1

    def _next(self, mailbox: "SimpleQueue[Work | None]", wanted: int) -> Work | None:
        """Return the next work, None if there is none any more; `wanted` is the number of works before it."""
        look_for(self._handed, wanted)
        try:
            return mailbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            pass
        with self._door:
            if mailbox.empty():
                self._left = True
                return None
        return mailbox.get()
