"""Fixtures of the tests of `threadloom.stages`."""

from collections.abc import Iterator

import pytest
from loguru import logger


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages that are logged during the test, each with its line break."""
    lines: list[str] = []
    handler = logger.add(lambda line: lines.append(str(line)), format="{message}")
    yield lines
    logger.remove(handler)
