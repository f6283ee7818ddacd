"""Measurements of this machine that are made once, and kept in a file that processes share."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from loguru import logger

from threadloom.kernels.compiling import write_problem
from threadloom.stages.storage import atomic_write, file_lock

LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that measures, which may have to compile its kernels."""

T = TypeVar("T")


def read_record(path: Path, kind: type[T]) -> T | None:
    """Return the content of a file, or None if it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.debug("the speeds in {} cannot be read and are measured again: {}", path, error)
        return None


def measured_once(
    path: Path,
    subject: str,
    read: Callable[[], T | None],
    measure: Callable[[], T],
    encode: Callable[[T], bytes],
) -> T:
    """Return what `read` finds in a file; if it finds None, measure `subject`, and write the result to the file.

    Errors of reading, locking or writing the file are logged, not raised.
    """
    found = read()
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT))
        except OSError as error:
            logger.debug("measuring without the lock of {}: {}", path, error)
        found = read()  # another process may have measured while this one waited
        if found is not None:
            return found
        if problem := write_problem(path.parent):
            logger.warning(
                "measuring {}; the result cannot be kept in {} ({}). Hint: set "
                "THREADLOOM_CACHE to a folder that you can write", subject, path.parent, problem,
            )  # fmt: skip
        else:
            logger.info("measuring {}, once; the result is stored in {}", subject, path)
        measured = measure()
        try:
            atomic_write(path, msgspec.json.format(encode(measured)))
        except OSError as error:
            logger.debug("the speeds are not stored: {}", error)
        return measured
