"""The log lines at the start of a run."""

import pytest
from loguru import logger

from tests.stages.support import tiny
from threadloom.stages.config import Precision
from threadloom.stages.resolve.precision import PrecisionChoice
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.run.announcement import announce


@pytest.mark.parametrize(("threads", "warned"), [(500, True), (2, False)])
def test_many_more_threads_than_cores_are_warned_about(threads: int, warned: bool) -> None:
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), level="WARNING", format="{message}")
    try:
        config = resolve(tiny(f"threads.forward={threads}"), 2)
        announce(config, PrecisionChoice(Precision.FLOAT32, reason="as asked"))
    finally:
        logger.remove(sink)
    assert any("threads.forward=500" in words for words in said) == warned
