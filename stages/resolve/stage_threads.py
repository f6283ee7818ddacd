"""The threads that the stages of a run may use, in every command, and those of a run that is resumed elsewhere.

Thread counts affect the speed of a run only, except `threads.blas`, which changes the rounding.
"""

import msgspec
from loguru import logger

from threadloom.stages.config import Config, ThreadsConfig
from threadloom.stages.machine import ThreadLimit, thread_limit
from threadloom.stages.resolve.resolution import choose_slots, choose_threads

COUNTS = ("embed", "forward", "backward", "reduce", "update")
"""Fields of `ThreadsConfig` that do not affect the weights."""


def stage_threads(config: Config) -> ThreadLimit:
    """Return the number of threads by which open thread counts are chosen: `threads.total`, or that of the process."""
    total = config.threads.total
    return ThreadLimit(total, "threads.total") if total else thread_limit()


def with_threads_of_this_process(saved: Config, limit: ThreadLimit) -> Config:
    """Return the saved configuration of a run with its thread counts reopened, so that `resolve` chooses them again.

    Counts are reopened if `resolve` chose all of them, and each that exceeds `limit`; a smaller limit is logged. Other
    counts were set or tuned, and are kept.
    """
    threads, chosen = saved.threads, _are_chosen(saved)
    counts = {name: getattr(threads, name) or 0 for name in COUNTS}
    most = max(threads.total, *counts.values())
    if most > limit.count:
        logger.info(
            "threads: the run had up to {} per stage and continues with {}, by {}; its weights do not depend on it",
            most, limit.count, limit.reason,
        )  # fmt: skip
    counts["team"] = threads.team or 1  # absent in the files of earlier releases
    reopened = dict.fromkeys(name for name, count in counts.items() if chosen or count > limit.count)
    total = threads.total if threads.total <= limit.count else 0
    config = msgspec.structs.replace(saved, threads=msgspec.structs.replace(threads, total=total, **reopened))
    if chosen and saved.slots in _chosen_slots(saved, counts["forward"], counts["backward"]):
        config = msgspec.structs.replace(config, slots=None)  # more threads need more slots
    return config


def _chosen_slots(saved: Config, forward: int, backward: int) -> tuple[int, int]:
    """Return the number of slots that `resolve` chooses, and that of earlier versions."""
    micro_batches = _micro_batches(saved)
    geometry = saved.geometry_with(saved.model.vocab_size or 1)
    earlier = min(forward + backward, micro_batches * (saved.delay + 1))
    return choose_slots(saved, geometry, forward, backward, micro_batches), earlier


def _are_chosen(saved: Config) -> bool:
    """Return True if the thread counts are those that `resolve` chooses for some number of threads."""
    count, writers = saved.threads.forward, _micro_batches(saved) if saved.shared_lanes else saved.lanes
    if not count or not writers:
        return False
    again = choose_threads(ThreadsConfig(), count, writers)
    return all(getattr(again, name) == getattr(saved.threads, name) for name in COUNTS)


def _micro_batches(saved: Config) -> int:
    return saved.sequences // (saved.micro_batch or saved.sequences)
