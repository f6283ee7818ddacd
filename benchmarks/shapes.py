"""Never slower than PyTorch, for whatever shape: `python -m benchmarks.shapes`.

Small models that take one dimension after another to its extremes: head sizes, context, vocabulary (odd ones too),
batch. For each, losses and gradient norms of some updates are found equal first; then both sides train in alternated
rounds, each in its process and at its default settings. A shape on which ours is slower is measured once more, three
times as long, before it counts. The exit status is 1 if one stays slower.
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

from benchmarks.protocol import FLOAT32, Side, SideWorker
from benchmarks.results import Comparison, spread
from benchmarks.throughput import (
    INSTALL,
    LOW,
    CheckFailed,
    check,
    machine_line,
    measure,
    sizes_of,
    warn_if_busy,
)
from threadloom.stages.config import Config, ModelConfig, OptimizerConfig, Precision
from threadloom.stages.console import WorkerError
from threadloom.stages.machine import detect
from threadloom.stages.resolve import to_json

LAYERS = 2
PRECISIONS = [precision.value for precision in Precision if precision is not Precision.AUTO]
AGAIN = 3.0
"""How many times as long a shape is measured again on which ours seemed slower."""


@dataclass(frozen=True)
class Shape:
    """A model of two layers and its batch."""

    vocabulary: int
    context: int
    heads: int
    head_size: int
    batch: int

    @property
    def name(self) -> str:
        """Such as `V65-T64-H4x32-B12`."""
        return f"V{self.vocabulary}-T{self.context}-H{self.heads}x{self.head_size}-B{self.batch}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read a name, or its five numbers separated by commas (ValueError)."""
        for letter in "VTHB-x":
            text = text.replace(letter, "," if letter in "-x" else "")
        return cls(*map(int, text.split(",")))

    def config(self) -> Config:
        """Return our configuration; everything else is open, so that `resolve` chooses as for anyone."""
        channels = self.heads * self.head_size
        model = ModelConfig(
            vocab_size=self.vocabulary, context=self.context, layers=LAYERS, heads=self.heads, channels=channels
        )
        optimizer = OptimizerConfig(lr=1e-4)  # the checked updates end before rounding could grow into a difference
        return Config(name=self.name, model=model, batch_size=self.batch, steps=1, optimizer=optimizer)


SHAPES = (
    Shape(65, 32, 4, 32, 1),  # the least work in an update: what is paid per update shows
    Shape(65, 64, 4, 32, 64),
    Shape(65, 32, 2, 32, 64),
    Shape(65, 1024, 4, 64, 1),  # one sequence that nothing can be cut of
    Shape(1000, 1024, 4, 64, 4),
    Shape(30011, 1024, 4, 48, 2),
    Shape(4099, 512, 8, 32, 4),
    Shape(50257, 128, 4, 64, 4),  # the projection on the vocabulary is nearly everything
    Shape(50257, 64, 4, 48, 1),
    Shape(50257, 32, 2, 80, 16),
    Shape(16000, 128, 12, 64, 4),
    Shape(10000, 128, 4, 48, 8),
    Shape(8191, 256, 4, 80, 4),
    Shape(257, 32, 2, 80, 16),
    Shape(1009, 77, 3, 32, 5),  # nothing here is a multiple of a vector
    Shape(65, 256, 6, 64, 16),
)


@dataclass(frozen=True)
class Result:
    """One shape: figures, or why there are none."""

    shape: Shape
    comparison: Comparison | None
    again: bool = False  # measured a second time, because ours seemed slower
    failure: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours to the best peer, round by round."""
        best = self.comparison.best_peer if self.comparison else None
        if self.comparison is None or best is None:
            return []
        return self.comparison.ratios(next(side for side in self.comparison.sides if side.ours), best)

    @property
    def ratio(self) -> float:
        """The median; 0 where there are no figures."""
        return median(self.ratios or [0.0])


def compare_shape(
    shape: Shape, precision: str, peers: Sequence[Side], seconds: float, say: Callable[[str], None]
) -> Result:
    """Check, then measure, and measure again what seems slower. What fails is a result, so that the others follow."""
    config = shape.config()
    sizes, text = sizes_of(config, detect().logical_cores), to_json(config)
    beside = "bf16" if precision in LOW else FLOAT32  # what PyTorch's autocast on a CPU can do
    try:
        checked = check(text, sizes, [0], precision)
        with ExitStack() as stack:
            workers = [stack.enter_context(SideWorker(side, text, sizes, precision=beside)) for side in peers]
            workers.append(stack.enter_context(SideWorker(Side.OURS, text, sizes, precision=precision)))
            result = Result(
                shape, Comparison(shape.name, sizes.flops_per_token, checked, measure(workers, sizes, seconds, say))
            )
            if result.ratio < 1.0:
                say(f"{result.ratio:.2f}: measuring it again")
                sides = measure(workers, sizes, AGAIN * seconds, say)
                result = Result(shape, Comparison(shape.name, sizes.flops_per_token, checked, sides), again=True)
    except (CheckFailed, WorkerError) as error:
        return Result(shape, None, failure=str(error))
    return result


def slower(results: Sequence[Result]) -> list[Result]:
    """Return those on which ours is slower, or that failed."""
    return [result for result in results if result.ratio < 1.0]


def table(results: Sequence[Result]) -> Table:
    """Return the results, the worst first."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("shape", "ours, tokens/s", "best peer, tokens/s", "ratio", "peak memory", ""):
        drawn.add_column(heading, justify="left" if heading in ("shape", "") else "right")
    for result in sorted(results, key=lambda result: result.ratio):
        best = result.comparison.best_peer if result.comparison else None
        if result.comparison is None or best is None:
            drawn.add_row(result.shape.name, "", "", "", "", result.failure)
            continue
        ours = next(side for side in result.comparison.sides if side.ours)
        drawn.add_row(
            result.shape.name, f"{ours.median:,.0f}", f"{best.median:,.0f}", spread(result.ratios),
            f"{ours.peak_bytes / 1e9:.2f} of {best.peak_bytes / 1e9:.2f} GB",
            "SLOWER" if result.ratio < 1.0 else "at the second time" if result.again else "",
        )  # fmt: skip
    return drawn


def to_dict(result: Result) -> dict[str, Any]:
    """Return a result as JSON takes it."""
    return {**asdict(result), "name": result.shape.name, "ratio": result.ratio, "ratios": result.ratios}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "names", multiple=True, metavar="V,T,HEADS,HEAD_SIZE,BATCH",
              help=f"Repeatable; {len(SHAPES)} shapes by default. A name from the table will do too.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.0), default=4.0, show_default=True,
              help="Seconds that each side runs for on a shape.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=FLOAT32, show_default=True,
              help="Ours; with bf16 PyTorch runs under bfloat16 autocast, otherwise in float32.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/shapes"), show_default=True)
def main(names: tuple[str, ...], seconds: float, compiled: bool, precision: str, out: Path) -> None:
    """Compare training throughput with PyTorch's on shapes of all kinds; status 1 where ours is slower."""
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException(INSTALL)
    try:
        shapes = [Shape.parse(name) for name in names] or list(SHAPES)
    except (ValueError, TypeError) as error:
        raise click.ClickException(f"a shape has five numbers, V,T,HEADS,HEAD_SIZE,BATCH: {error}") from error
    peers = [Side.EAGER, *([Side.COMPILED] if compiled else [])]
    console = Console(width=None if sys.stdout.isatty() else 170)
    warn_if_busy(lambda sentence: console.print(f"warning: {sentence}", style="yellow", highlight=False))
    out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for shape in shapes:
        result = compare_shape(shape, precision, peers, seconds, _speaker(console, shape.name))
        results.append(result)
        console.print(f"{shape.name}: {result.failure or spread(result.ratios)}", highlight=False)
        content = {
            "machine": machine_line(), "precision": precision, "load_average": os.getloadavg(),
            "results": [to_dict(one) for one in results],
        }  # fmt: skip
        (out / f"shapes-{precision}.json").write_text(msgspec.json.format(json.dumps(content), indent=2) + "\n")
    console.print(table(results))
    bad = slower(results)
    console.print(
        f"{len(results) - len(bad)} of {len(results)} shapes are as fast as PyTorch or faster", highlight=False
    )
    console.print(f"written to {out}/shapes-{precision}.json", highlight=False)
    sys.exit(1 if bad else 0)


def _speaker(console: Console, name: str) -> Callable[[str], None]:
    return lambda sentence: console.print(f"{name}: {sentence}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
