"""The current step of a search: in a status line on a terminal, as log lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loguru import logger
from rich.console import Console
from rich.markup import escape

from threadloom.pipeline import is_redrawable


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step."""
    if is_redrawable(console):
        with console.status("tuning") as status:
            yield lambda step: status.update(f"tuning: {escape(step)}")
    else:
        yield lambda step: logger.info("trying {}", step)
