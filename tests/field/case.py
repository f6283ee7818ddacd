"""A case: an input in an environment, and the expected property."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A command line of bash, its surroundings, and its expected end.

    Variables of `script` and `setup`: T, the command threadloom; PY, the interpreter; W, an empty folder of the case;
    TEXT, a text; CONFIG, a small configuration; TRAIN, `$T train` with both; LONG, the same for some seconds; RUN and
    WHOLE, finished runs of TRAIN and LONG; PACKAGE, the installed package.
    """

    name: str
    script: str
    section: int
    """2: places, 3: limits, 4: text in, 5: output, 6: models, options and signals."""
    status: tuple[int, ...] = (0,)
    says: tuple[str, ...] = ()
    """Regular expressions that the output contains."""
    lacks: tuple[str, ...] = ()
    """Regular expressions that the output does not contain."""
    leaves: tuple[str, ...] = ()
    """Patterns of files in W that exist afterwards."""
    setup: str = ""
    """Commands of root, in a mount namespace of the case."""
    user: int | None = None
    """User id of the script; no entry in the password database is needed."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Changed variables; None removes one."""
    limit: float = 120.0
    """Seconds after which the case has failed."""


@dataclass(frozen=True)
class Outcome:
    """The end of a case."""

    case: Case
    problems: tuple[str, ...]
    status: int | None
    """None: not run, because this machine lacks the means."""
    seconds: float
    output: str


NO_ROOM = "mkdir -p $W/small && mount -t tmpfs -o size=1m none $W/small && chmod 777 $W/small"
"""A file system of 1 MB at $W/small."""
READ_ONLY_PACKAGE = "mount --bind $PACKAGE $PACKAGE && mount -o remount,bind,ro $PACKAGE"
GROUP_2 = (
    "mount -t tmpfs none /sys/fs/cgroup && echo {quota} 100000 > /sys/fs/cgroup/cpu.max && "
    "echo {memory} > /sys/fs/cgroup/memory.max && echo 0 > /sys/fs/cgroup/memory.current"
)
"""The control group of version 2 of a container, with a quota in 1/100000 cores and a limit in bytes."""
READ_ONLY_HOME = "mkdir -p $W/ro && mount -t tmpfs -o ro none $W/ro"
"""A read-only folder at $W/ro."""
