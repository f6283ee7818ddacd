"""The sides of a comparison, each in a separate process (`stages.console.json_worker`).

A worker (`python -m benchmarks.worker`) is one side, such as PyTorch eager, or threadloom at delay 1. It computes on
request and is idle between requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from benchmarks.model_sizes import ModelSizes
from threadloom.stages.console import JsonWorkerProcess, module_command

FLOAT32 = "float32"
"""The precision that tables do not name."""
BF16_WEIGHTS = "bf16 weights"
"""PyTorch's precision with all weights in bfloat16. In others they are in float32, under autocast to bfloat16."""
BF16_MODEL = "bf16 model"
"""PyTorch's precision of adapters in float32 for a frozen model in bfloat16, under autocast."""


class Side(Enum):
    """A side of the comparison. The value is its name in tables, which for threadloom precedes the delay."""

    EAGER = "PyTorch eager"
    COMPILED = "PyTorch compile"
    CHECKPOINTED = "PyTorch checkpointed"
    """Eager, with activations recomputed in backward; in fine-tuning only."""
    JAX = "JAX"
    LLM_C = "llm.c"
    """In float32 only."""
    OURS = "threadloom"

    @property
    def framework(self) -> str:
        """The library that trains."""
        return self.value.split(maxsplit=1)[0]


class FineTuning(msgspec.Struct, frozen=True, kw_only=True):
    """The model that PyTorch starts from and the adapters that it trains, as folders."""

    model: str
    """Folder of the model in Hugging Face's layout."""
    adapter: str = ""
    """Folder of the adapters in PEFT's layout. Empty: all weights are trained."""
    adapter_parameters: int = 0


class TrainingSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The model, the batch and the optimizer, as plain numbers that both sides understand."""

    model: ModelSizes
    sequences: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    threads: int
    rates: tuple[float, ...] = ()
    """Learning rate of each update for PyTorch. Empty: `lr` throughout. threadloom's side has its schedule."""
    fine_tuning: FineTuning | None = None
    """None: a new model. threadloom's side has the same in its configuration."""
    llm_c: str = ""
    """Path of the library of llm.c (`benchmarks.llm_c`), for its side."""

    @property
    def tokens(self) -> int:
        """Tokens per update."""
        return self.sequences * self.model.context

    @property
    def flops_per_token(self) -> float:
        """Six per trained parameter that takes part in a matrix multiply, four per frozen one, and causal attention."""
        model, tuned = self.model, self.fine_tuning
        attention = 6.0 * model.layers * model.context * model.attn_width
        if tuned and tuned.adapter:
            return 4.0 * model.multiplied + 6.0 * tuned.adapter_parameters + attention
        return 6.0 * model.multiplied + attention


@dataclass(frozen=True)
class UpdateFigures:
    """The time that some updates took, and their losses and gradient norms."""

    seconds: float
    losses: list[float]
    grad_norms: list[float]

    @property
    def updates(self) -> int:
        """The number of updates."""
        return len(self.losses)


class SideWorker(JsonWorkerProcess):
    """One side in its process. Its memory is `peak`, and `libraries`, the memory before it built a model."""

    def __init__(
        self, side: Side, config: str, sizes: TrainingSizes, delay: int = 0, folder: Path | None = None,
        precision: str = FLOAT32, cpus: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Start the process.

        `config` is threadloom's configuration as JSON. `folder` holds the weights and tokens for the comparison of
        results. With a `precision` other than float32 and BF16_WEIGHTS PyTorch runs under autocast to bfloat16. `cpus`
        are the only CPUs that the process may use (Linux); None allows all.
        """
        self.side, self.delay, self.precision = side, delay, precision
        task = {
            "side": side.name, "config": config, "sizes": msgspec.to_builtins(sizes), "delay": delay,
            "precision": precision, "folder": str(folder) if folder else None, "cpus": list(cpus) if cpus else None,
        }  # fmt: skip
        super().__init__(module_command("benchmarks.worker"), task)

    @property
    def name(self) -> str:
        """The name in tables."""
        kind = self.side.value if self.precision == FLOAT32 else f"{self.side.value} {self.precision}"
        return f"{kind} τ={self.delay}" if self.side is Side.OURS else kind

    def run(self, updates: int) -> UpdateFigures:
        """Make `updates` updates in the process and return their figures."""
        return UpdateFigures(**self.request({"run": updates}))
