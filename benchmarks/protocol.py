"""What the processes of a comparison say to each other: one JSON line to a worker, one back, and so on.

A worker (`python -m benchmarks.worker`) is one side, say PyTorch eager or threadloom at delay 1, alone in its process,
so that its peak memory is its own. It computes only while it is asked to; between, it waits for its next line.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


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


class WorkerError(RuntimeError):
    """A side of the comparison failed; the message holds the end of what it said."""


class Worker:
    """One side in its process. Used as a context manager; leaving ends the process."""

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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._send(task)

    @property
    def name(self) -> str:
        """How tables call it."""
        kind = self.side.value if self.precision == FLOAT32 else f"{self.side.value} {self.precision}"
        return f"{kind} τ={self.delay}" if self.side is Side.OURS else kind

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its input ends it
        self._process.wait()
        self._process.stdout.close()

    def run(self, updates: int) -> Steps:
        """Let it make updates."""
        return Steps(**self._ask({"run": updates}))

    def memory(self) -> dict[str, int]:
        """Return its bytes: `peak` since it began, and `libraries`, what it had before it built anything."""
        return dict(self._ask({"memory": True}))

    def _ask(self, question: dict[str, Any]) -> Any:
        self._send(question)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}; its own words are above")
        return json.loads(line)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}") from error
