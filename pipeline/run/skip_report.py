"""The report of skipped items: one warning at the end of a run, to the logger `threadloom.pipeline.skipped`."""

import logging
from collections.abc import Iterable

from threadloom.pipeline.run.stage_runtime import StageRuntime

LOG = logging.getLogger("threadloom.pipeline.skipped")


def report_skipped(run: str, runtimes: Iterable[StageRuntime]) -> None:
    """Log the numbers of skipped items by stage and type of error, if any were skipped."""
    parts = []
    for runtime in runtimes:
        failures = runtime.failures
        if failures is not None and failures.skipped:
            types = ", ".join(f"{number} {name}" for name, number in failures.errors.most_common())
            parts.append(f"{failures.skipped} of {failures.items} by {runtime.stage.name!r} ({types})")
    if parts:
        LOG.warning("the run of %r skipped items that raised: %s", run, "; ".join(parts))
