"""Throughput compared with PyTorch over shapes of all kinds: `python -m benchmarks.shapes`.

Small models with extreme values of each dimension: head size, context, vocabulary (odd sizes too), batch. For each, the
losses and gradient norms of some updates are compared first; then both sides train in alternating rounds, each in its
own process and at its default settings. A shape on which threadloom is slower is measured again for three times as
long. The exit status is 1 if threadloom is still slower on any shape.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import BITS16, CheckFailed, check_equal
from benchmarks.peers import INSTALL
from benchmarks.protocol import FLOAT32, Side, SideWorker
from benchmarks.results import ThroughputComparison, format_spread
from benchmarks.throughput import (
    machine_line,
    measure_sides,
    sizes_of,
    warn_if_busy,
)
from threadloom.stages.config import Config, Gpt2Config, OptimizerConfig, Precision
from threadloom.stages.console import WorkerError
from threadloom.stages.machine import detect
from threadloom.stages.resolve import to_json

LAYERS = 2
PRECISIONS = [precision.value for precision in Precision if precision is not Precision.AUTO]
REPEAT_FACTOR = 3.0
"""Factor on the duration of the second measurement of a shape."""


@dataclass(frozen=True)
class TrainingShape:
    """A model of two layers and its batch."""

    vocabulary: int
    context: int
    heads: int
    head_size: int
    batch: int

    @property
    def name(self) -> str:
        """The sizes as text, such as `V65-T64-H4x32-B12`."""
        return f"V{self.vocabulary}-T{self.context}-H{self.heads}x{self.head_size}-B{self.batch}"

    @classmethod
    def parse(cls, text: str) -> "TrainingShape":
        """Return the shape of a name, or of its five numbers separated by commas. Raises ValueError or TypeError."""
        for letter in "VTHB-x":
            text = text.replace(letter, "," if letter in "-x" else "")
        return cls(*map(int, text.split(",")))

    def config(self) -> Config:
        """Return threadloom's configuration; all other settings are left open, as for a user."""
        channels = self.heads * self.head_size
        model = Gpt2Config(
            vocab_size=self.vocabulary, context=self.context, layers=LAYERS, heads=self.heads, channels=channels
        )
        optimizer = OptimizerConfig(
            lr=1e-4
        )  # small, so that rounding stays within the tolerances for the checked updates
        return Config(name=self.name, model=model, batch_size=self.batch, steps=1, optimizer=optimizer)


SHAPES = (
    TrainingShape(65, 32, 4, 32, 1),  # the least work per update: fixed costs dominate
    TrainingShape(65, 64, 4, 32, 64),
    TrainingShape(65, 32, 2, 32, 64),
    TrainingShape(65, 1024, 4, 64, 1),  # one sequence, which cannot be split
    TrainingShape(1000, 1024, 4, 64, 4),
    TrainingShape(30011, 1024, 4, 48, 2),
    TrainingShape(4099, 512, 8, 32, 4),
    TrainingShape(50257, 128, 4, 64, 4),  # dominated by the projection to the vocabulary
    TrainingShape(50257, 64, 4, 48, 1),
    TrainingShape(50257, 32, 2, 80, 16),
    TrainingShape(16000, 128, 12, 64, 4),
    TrainingShape(10000, 128, 4, 48, 8),
    TrainingShape(8191, 256, 4, 80, 4),
    TrainingShape(257, 32, 2, 80, 16),
    TrainingShape(1009, 77, 3, 32, 5),  # no size is a multiple of a vector
    TrainingShape(65, 256, 6, 64, 16),
)


@dataclass(frozen=True)
class ShapeResult:
    """The result of one shape: measurements, or the reason for their absence."""

    shape: TrainingShape
    comparison: ThroughputComparison | None
    again: bool = False  # measured twice, because threadloom seemed slower
    failure: str = ""

    @property
    def ratios(self) -> list[float]:
        """Speed relative to the best peer, round by round."""
        best = self.comparison.best_peer if self.comparison else None
        if self.comparison is None or best is None:
            return []
        return self.comparison.ratios(next(side for side in self.comparison.sides if side.ours), best)

    @property
    def ratio(self) -> float:
        """The median ratio; 0 if there are no measurements."""
        return median(self.ratios or [0.0])


def compare_shape(
    shape: TrainingShape, precision: str, peers: Sequence[Side], seconds: float, on_progress: Callable[[str], None]
) -> ShapeResult:
    """Check and measure a shape, twice if threadloom seems slower. A failure is returned as a result."""
    config = shape.config()
    sizes, text = sizes_of(config, detect().logical_cores), to_json(config)
    peer_precision = "bf16" if precision in BITS16 else FLOAT32  # all that autocast on a CPU supports
    try:
        checked = check_equal(text, sizes, [0], precision)
        with ExitStack() as stack:
            workers = [stack.enter_context(SideWorker(side, text, sizes, precision=peer_precision)) for side in peers]
            workers.append(stack.enter_context(SideWorker(Side.OURS, text, sizes, precision=precision)))
            result = ShapeResult(
                shape,
                ThroughputComparison(
                    shape.name, sizes.flops_per_token, checked, measure_sides(workers, sizes, seconds, on_progress)
                ),
            )
            if result.ratio < 1.0:
                on_progress(f"{result.ratio:.2f}: measuring again")
                sides = measure_sides(workers, sizes, REPEAT_FACTOR * seconds, on_progress)
                result = ShapeResult(
                    shape, ThroughputComparison(shape.name, sizes.flops_per_token, checked, sides), again=True
                )
    except (CheckFailed, WorkerError) as error:
        return ShapeResult(shape, None, failure=str(error))
    return result


def slower(results: Sequence[ShapeResult]) -> list[ShapeResult]:
    """Return the results that failed or on which threadloom is slower."""
    return [result for result in results if result.ratio < 1.0]


def shapes_table(results: Sequence[ShapeResult]) -> Table:
    """Return the table of results, the worst first."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("shape", "threadloom, tokens/s", "best peer, tokens/s", "ratio", "peak memory", ""):
        drawn.add_column(heading, justify="left" if heading in ("shape", "") else "right")
    for result in sorted(results, key=lambda result: result.ratio):
        best = result.comparison.best_peer if result.comparison else None
        if result.comparison is None or best is None:
            drawn.add_row(result.shape.name, "", "", "", "", result.failure)
            continue
        ours = next(side for side in result.comparison.sides if side.ours)
        drawn.add_row(
            result.shape.name, f"{ours.median:,.0f}", f"{best.median:,.0f}", format_spread(result.ratios),
            f"{ours.peak_bytes / 1e9:.2f} of {best.peak_bytes / 1e9:.2f} GB",
            "SLOWER" if result.ratio < 1.0 else "measured twice" if result.again else "",
        )  # fmt: skip
    return drawn


def shape_dict(result: ShapeResult) -> dict[str, Any]:
    """Return a result for JSON, with its name and ratios."""
    return {**asdict(result), "name": result.shape.name, "ratio": result.ratio, "ratios": result.ratios}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "names", multiple=True, metavar="V,T,HEADS,HEAD_SIZE,BATCH",
              help=f"Repeatable; by default {len(SHAPES)} shapes. A name from the table is accepted too.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.0), default=4.0, show_default=True,
              help="Seconds per side and shape.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=FLOAT32, show_default=True,
              help="Precision of threadloom; for 16 bits PyTorch runs under bfloat16 autocast.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/shapes"), show_default=True)
def main(names: tuple[str, ...], seconds: float, compiled: bool, precision: str, out: Path) -> None:
    """Compare training throughput with PyTorch on shapes of all kinds; exit status 1 if threadloom is slower."""
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException(INSTALL["torch"])
    try:
        shapes = [TrainingShape.parse(name) for name in names] or list(SHAPES)
    except (ValueError, TypeError) as error:
        raise click.ClickException(f"expected five numbers, V,T,HEADS,HEAD_SIZE,BATCH: {error}") from error
    peers = [Side.EAGER, *([Side.COMPILED] if compiled else [])]
    console = Console(width=None if sys.stdout.isatty() else 170)
    warn_if_busy(lambda text: console.print(f"warning: {text}", style="yellow", highlight=False))
    out.mkdir(parents=True, exist_ok=True)
    results: list[ShapeResult] = []
    for shape in shapes:
        result = compare_shape(shape, precision, peers, seconds, _printer(console, shape.name))
        results.append(result)
        console.print(f"{shape.name}: {result.failure or format_spread(result.ratios)}", highlight=False)
        content = {
            "machine": machine_line(), "precision": precision, "load_average": os.getloadavg(),
            "results": [shape_dict(one) for one in results],
        }  # fmt: skip
        (out / f"shapes-{precision}.json").write_text(msgspec.json.format(json.dumps(content), indent=2) + "\n")
    console.print(shapes_table(results))
    bad = slower(results)
    console.print(
        f"{len(results) - len(bad)} of {len(results)} shapes are as fast as PyTorch or faster", highlight=False
    )
    console.print(f"written to {out}/shapes-{precision}.json", highlight=False)
    sys.exit(1 if bad else 0)


def _printer(console: Console, name: str) -> Callable[[str], None]:
    return lambda text: console.print(f"{name}: {text}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
