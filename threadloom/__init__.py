"""Train small GPT language models on the CPU, as a dataflow pipeline of threads.

The public names are listed in `__all__`: those of the pipeline engine (`threadloom.pipeline`) and those of the trainer
(`train`, `load_config`, `load_model` and the types that they take). Each is loaded on first use (PEP 562), so that
`import threadloom` imports neither NumPy nor Numba.
"""

from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadloom import kernels as kernels
    from threadloom import pipeline as pipeline
    from threadloom import stages as stages
    from threadloom.pipeline import *  # noqa: F403
    from threadloom.stages.config import Config
    from threadloom.stages.inference import Model, SamplingSettings, generate
    from threadloom.stages.resolve import load_config
    from threadloom.stages.run import train
    from threadloom.stages.storage import RunMode

    load_model = Model.open

_PACKAGES = ("kernels", "pipeline", "stages")
_TRAINER = {
    "Config": "threadloom.stages.config:Config",
    "RunMode": "threadloom.stages.storage:RunMode",
    "SamplingSettings": "threadloom.stages.inference:SamplingSettings",
    "generate": "threadloom.stages.inference:generate",
    "load_config": "threadloom.stages.resolve:load_config",
    "load_model": "threadloom.stages.inference:Model.open",
    "train": "threadloom.stages.run:train",
}
"""Public name of the trainer → module and attribute. Every other public name belongs to `threadloom.pipeline`."""

__all__ = [  # noqa: F405
    "ALIGNMENT",
    "SKIP",
    "Abortable",
    "AdmissionError",
    "Arena",
    "Attempt",
    "BankStatistics",
    "Banks",
    "BlasThreads",
    "BottleneckKind",
    "Cancelled",
    "Channel",
    "ChannelStatistics",
    "Closed",
    "Config",
    "DeadLetter",
    "Decision",
    "Diagnosis",
    "Distribution",
    "FailFast",
    "Fifo",
    "Gather",
    "Graph",
    "GraphError",
    "GraphFormat",
    "GraphView",
    "InOrder",
    "ItemTimeout",
    "Join",
    "Label",
    "LaneOrder",
    "LanePlan",
    "Lanes",
    "Lease",
    "LiveView",
    "MonotonicCounter",
    "Node",
    "OnError",
    "OnProcesses",
    "OnStall",
    "PerWorker",
    "PipelineError",
    "Policy",
    "Pool",
    "PoolExhausted",
    "PoolStatistics",
    "ProcessError",
    "ProcessTraceback",
    "ProcessWorker",
    "Retry",
    "RetryAfter",
    "RouteError",
    "Run",
    "RunMode",
    "RunOptions",
    "RunStatistics",
    "SamplingSettings",
    "SharedPool",
    "ShutdownTimeout",
    "Sink",
    "Skip",
    "SkipFailed",
    "StageFailure",
    "StageOptions",
    "StageStatistics",
    "StaleVersion",
    "StallReport",
    "Stalled",
    "TimelineOptions",
    "TooManySkipped",
    "Trace",
    "TraceEvent",
    "Wait",
    "Watchdog",
    "WorkerDied",
    "WorkerTimeout",
    "aligned_zeros",
    "arena_size",
    "available_cores",
    "blas_threads",
    "diagnose",
    "draw_graph",
    "draw_timeline",
    "find_bottleneck",
    "format_bytes",
    "format_clock",
    "format_duration",
    "format_estimate",
    "format_rate",
    "generate",
    "is_redrawable",
    "load_config",
    "load_model",
    "loaded_blas",
    "on_processes",
    "per_worker",
    "render_png",
    "status_line",
    "train",
    "version_for",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and reports a name that is not among them

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"threadloom.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _TRAINER.get(name, f"threadloom.pipeline:{name}").partition(":")
        value = attrgetter(attribute)(import_module(module))
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PACKAGES})
