"""Train small GPT language models on the CPU, as a dataflow pipeline of threads.

The public names, `__all__`, are those of the pipeline engine (`threadloom.pipeline`) and those of the trainer (`train`,
`load_config`, `load_model` and the types that they take). Each is loaded on first use (PEP 562), so that
`import threadloom` imports neither NumPy nor Numba. `__all__` and `dir` load the engine.
"""

TYPE_CHECKING = False  # that of `typing`, which takes milliseconds to import: see `threadloom.__main__`

if TYPE_CHECKING:
    from typing import Any

    from threadloom import kernels as kernels, pipeline as pipeline, stages as stages
    from threadloom.pipeline import *  # noqa: F403
    from threadloom.stages.config import Config as Config
    from threadloom.stages.inference import (
        GenerationLimits as GenerationLimits,
        Model,
        SamplingSettings as SamplingSettings,
        generate as generate,
        generate_text as generate_text,
    )
    from threadloom.stages.resolve import load_config as load_config
    from threadloom.stages.run import train as train
    from threadloom.stages.storage import RunMode as RunMode

    load_model = Model.open
    __all__: list[str]

_PACKAGES = ("kernels", "pipeline", "stages")
_TRAINER = {
    "Config": "threadloom.stages.config:Config",
    "RunMode": "threadloom.stages.storage:RunMode",
    "SamplingSettings": "threadloom.stages.inference:SamplingSettings",
    "GenerationLimits": "threadloom.stages.inference:GenerationLimits",
    "generate": "threadloom.stages.inference:generate",
    "generate_text": "threadloom.stages.inference:generate_text",
    "load_config": "threadloom.stages.resolve:load_config",
    "load_model": "threadloom.stages.inference:Model.open",
    "train": "threadloom.stages.run:train",
}
"""Public name of the trainer → module and attribute. Every other public name belongs to `threadloom.pipeline`."""


def _load(name: str) -> "Any":
    """Import the value of a public name, or of `__all__`; raise AttributeError if there is none."""
    from importlib import import_module

    if name in _PACKAGES:
        return import_module(f"threadloom.{name}")
    if name in _TRAINER:
        module, _, attribute = _TRAINER[name].partition(":")
        value: Any = import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
        return value
    if name == "__all__" or not name.startswith("_"):  # a look-up of another special name must not load the engine
        engine = import_module("threadloom.pipeline")
        if name == "__all__":
            return sorted({*engine.__all__, *_TRAINER})
        if name in engine.__all__:
            return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # a type checker sees the imports above, and reports a name that is not among them

    def __getattr__(name: str) -> "Any":
        value = globals()[name] = _load(name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_load("__all__"), *_PACKAGES})
