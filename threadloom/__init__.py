"""Train small GPT language models on the CPU, as a dataflow pipeline of real threads.

The packages, each importing only those before it: `threadloom.kernels` and `threadloom.pipeline` (neither imports the
other), `threadloom.stages`. The public names below are loaded when they are first used, so that importing this package
costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadloom.pipeline import *  # noqa: F403


def __getattr__(name: str) -> Any:
    from importlib import import_module

    pipeline = import_module("threadloom.pipeline")
    if name in pipeline.__all__:
        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
