"""Meetings of the members of a team that divides one token of a generation.

A token has some sixty meetings, some tens of microseconds of work apart. A member that sleeps at one is late for the
next one: on a machine with other work the system wakes it on the processor of another member. So it looks for longer
than at a meeting of `kernels.common.team`, and then sleeps between two looks, so that a member that has no processor
gets one. For the same reason it looks for the next token for a while before its thread sleeps.
"""

import time

from threadloom.kernels.common.team import Team, meet_with_looks
from threadloom.kernels.common.waiting import Counts, load_acquire
from threadloom.kernels.compiling import JIT_ENABLED, jit_strict_fp

_LOOKS = 300_000  # before the first sleep: some 300 microseconds
_LOOKS_BETWEEN = 4 * _LOOKS  # tokens: the caller draws the next one in some tenths of a millisecond


@jit_strict_fp
def meet_soon(team: Team) -> None:
    """Wait until all members have come to this meeting, or the team stops."""
    meet_with_looks(team, _LOOKS)


if JIT_ENABLED:

    @jit_strict_fp
    def look_for(count: Counts, wanted: int) -> None:
        """Wait until a count (1,) is `wanted` at least, for a millisecond or so, without the GIL."""
        place, looks = count.ctypes.data, 0
        while load_acquire(place) < wanted and looks < _LOOKS_BETWEEN:
            looks += 1

else:

    def look_for(count: Counts, wanted: int) -> None:
        """Give other threads a moment if a count (1,) is less than `wanted`."""
        if count[0] < wanted:
            time.sleep(0.0)
