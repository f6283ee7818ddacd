"""The two sides of a comparison, each in a process of its own that answers questions (`stages.console.json_worker`).

A worker (`python -m benchmarks.worker`) is one side, say PyTorch eager or threadloom at delay 1. It computes only while
it is asked to; between, it waits for its next line.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from threadloom.stages.console import Asked, command_of

FLOAT32 = "float32"
"""The precision whose name tables leave out."""


class Side(Enum):
    """Who is measured; the value is what tables say, with the delay behind it for ours."""

    EAGER = "PyTorch eager"
    COMPILED = "PyTorch compile"
    OURS = "threadloom"


@dataclass(frozen=True)
class Sizes:
    """The model, the batch and the optimizer, as plain numbers that both sides take."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int
    sequences: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    threads: int

    @property
    def tokens(self) -> int:
        """Tokens of one update."""
        return self.sequences * self.context

    @property
    def parameters(self) -> int:
        """Of the model, embeddings tied."""
        c = self.channels
        return (self.vocabulary + self.context) * c + self.layers * (12 * c * c + 13 * c) + 2 * c

    @property
    def flops_per_token(self) -> float:
        """Six a parameter that multiplies (positions do not), and causal attention's products."""
        matrices = self.parameters - self.context * self.channels
        return 6.0 * matrices + 6.0 * self.layers * self.context * self.channels


@dataclass(frozen=True)
class Steps:
    """What some updates took and gave."""

    seconds: float
    losses: list[float]
    grad_norms: list[float]


class Worker(Asked):
    """One side in its process; its memory is `peak`, and `libraries`, what it had before it built anything."""

    def __init__(
        self, side: Side, config: str, sizes: Sizes, delay: int = 0, folder: Path | None = None,
        precision: str = FLOAT32, cpus: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """`config`: ours as JSON; `folder`: where weights and tokens are for the comparison of results.

        `precision`: float32, or another of ours; PyTorch's side then runs under autocast to bfloat16. `cpus`: the only
        ones that the process may use (Linux); None: all.
        """
        self.side, self.delay, self.precision = side, delay, precision
        task = {
            "side": side.name, "config": config, "sizes": asdict(sizes), "delay": delay, "precision": precision,
            "folder": str(folder) if folder else None, "cpus": list(cpus) if cpus else None,
        }  # fmt: skip
        super().__init__(command_of("benchmarks.worker"), task)

    @property
    def name(self) -> str:
        """How tables call it."""
        kind = self.side.value if self.precision == FLOAT32 else f"{self.side.value} {self.precision}"
        return f"{kind} τ={self.delay}" if self.side is Side.OURS else kind

    def run(self, updates: int) -> Steps:
        """Let it make updates."""
        return Steps(**self.ask({"run": updates}))
