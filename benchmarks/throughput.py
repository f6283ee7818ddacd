"""Throughput beside PyTorch: `python -m benchmarks.throughput`.

First the answer: from the same weights, on the same tokens, the losses and gradient norms of some updates must be equal
within float32. Then the time: every side in a process of its own, in alternated rounds, so that what else the machine
does meets all of them. Our side runs at its default settings; each of its rounds begins and ends with an empty
pipeline, so filling and draining it count against us.
"""

import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.protocol import FLOAT32, Side, SideWorker, TrainingSizes
from benchmarks.results import HEADINGS, Comparison, Measured, figure, markdown, rows
from threadloom.stages.config import Config, InputError, Precision
from threadloom.stages.machine import BUSY, detect, load_average
from threadloom.stages.resolve import load_config, to_json

DEFAULT_CONFIGS = ("nanogpt-cpu", "small", "optimized")
RANDOM_VOCABULARY = 65
"""Stands for the vocabulary of a configuration that takes it from the text: tinyshakespeare's characters."""
ROUNDS = 5
LEAST_UPDATES = 3
"""Of one round."""
TOLERANCES = {True: (2e-5, 1e-3), False: (2e-3, 2e-2)}
"""Of loss and gradient norm, relative, on each of the checked updates: in float32, and in 16 bits. float32's first loss
agrees to about 1e-7; what follows has been through AdamW, which turns a rounding of a gradient near zero into a step of
full size."""
LOW = (Precision.BF16.value, Precision.FP16.value)
"""Precisions of 16 bits."""
INSTALL = "PyTorch is not installed: run `make bench`, or `pip install 'threadloom[bench]'`; or give --no-peers"


class CheckFailed(RuntimeError):
    """Two sides do not compute the same."""


def sizes_of(config: Config, threads: int) -> TrainingSizes:
    """Return what both sides take."""
    model, optimizer = config.model, config.optimizer
    return TrainingSizes(
        vocabulary=model.vocab_size or RANDOM_VOCABULARY, context=model.context, layers=model.layers,
        heads=model.heads, channels=model.channels, sequences=config.sequences, lr=optimizer.lr,
        beta1=optimizer.beta1, beta2=optimizer.beta2, eps=optimizer.eps, weight_decay=optimizer.weight_decay,
        clip=optimizer.clip, threads=threads,
    )  # fmt: skip


def check(config: str, sizes: TrainingSizes, delays: Sequence[int], precision: str = FLOAT32) -> str:
    """Compare losses and gradient norms of a few updates, and say what was equal; CheckFailed where it is not.

    At delay 0 all of them; a run at another delay begins with the same update, and departs from there by definition.
    The peer computes in float32 here, whatever ours does.
    """
    loss_tolerance, norm_tolerance = TOLERANCES[precision in (FLOAT32, Precision.BF16X3.value)]
    from benchmarks.ours import CHECKED_UPDATES

    said = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for delay in delays:
            with SideWorker(Side.OURS, config, sizes, delay, folder, precision) as ours:
                mine = ours.run(CHECKED_UPDATES)
            with SideWorker(Side.EAGER, config, sizes, folder=folder) as peer:
                theirs = peer.run(CHECKED_UPDATES)
            updates = CHECKED_UPDATES if delay == 0 else 1
            loss = _difference(mine.losses[:updates], theirs.losses[:updates])
            norm = _difference(mine.grad_norms[:updates], theirs.grad_norms[:updates])
            if not (loss <= loss_tolerance and norm <= norm_tolerance):
                raise CheckFailed(
                    f"threadloom at delay {delay} and PyTorch do not agree: losses {mine.losses[:updates]} and "
                    f"{theirs.losses[:updates]}, gradient norms {mine.grad_norms[:updates]} and "
                    f"{theirs.grad_norms[:updates]}"
                )
            plural = "s" if updates > 1 else ""
            within = f"loss within {loss:.0e}, gradient norm within {norm:.0e}"
            said.append(f"{precision} τ={delay}: {updates} update{plural}, {within}")
    return "; ".join(said)


def _difference(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) if math.isfinite(a) else math.inf for a, b in zip(mine, theirs, strict=True))


def measure(
    workers: Sequence[SideWorker], sizes: TrainingSizes, seconds: float, say: Callable[[str], None]
) -> list[Measured]:
    """Let the sides run in turns, `seconds` each in all, the order turned round every other time."""
    pace: dict[SideWorker, float] = {}
    for worker in workers:
        say(f"warming up {worker.name}")
        worker.run(LEAST_UPDATES + worker.delay)
        pace[worker] = worker.run(LEAST_UPDATES).seconds / LEAST_UPDATES
    rates: dict[SideWorker, list[float]] = {worker: [] for worker in workers}
    for number in range(ROUNDS):
        say(f"round {number + 1} of {ROUNDS}")
        for worker in workers if number % 2 == 0 else reversed(workers):
            updates = max(LEAST_UPDATES, round(seconds / ROUNDS / pace[worker]))
            pace[worker] = worker.run(updates).seconds / updates
            rates[worker].append(sizes.tokens / pace[worker])
    found = []
    for worker in workers:
        memory = worker.memory()
        found.append(
            Measured(worker.name, worker.side is Side.OURS, rates[worker], memory["peak"], memory["libraries"])
        )
    return found


def compare(
    config: Config, delays: Sequence[int], peers: Sequence[Side], seconds: float, say: Callable[[str], None],
    precisions: Sequence[str] = (FLOAT32,),
) -> Comparison:  # fmt: skip
    """Check, then measure, one configuration."""
    sizes = sizes_of(config, detect().logical_cores)
    model = msgspec.structs.replace(config.model, vocab_size=sizes.vocabulary)
    text = to_json(msgspec.structs.replace(config, model=model))
    say("checking that both compute the same")
    every = [check(text, sizes, delays, precision) for precision in precisions] if peers else []
    checked = "; ".join(every) or "nothing, for want of a peer"
    # PyTorch's autocast on a CPU is to bfloat16, whichever precision of ours it stands beside.
    theirs = dict.fromkeys("bf16" if precision in LOW else FLOAT32 for precision in precisions)
    with ExitStack() as stack:
        workers = [SideWorker(side, text, sizes, precision=precision) for precision in theirs for side in peers]
        workers += [
            SideWorker(Side.OURS, text, sizes, delay, precision=precision)
            for precision in precisions
            for delay in delays
        ]
        for worker in workers:
            stack.enter_context(worker)
        sides = measure(workers, sizes, seconds, say)
    return Comparison(config.name, sizes.flops_per_token, checked, sides)


def warn_if_busy(say: Callable[[str], None]) -> None:
    """Say so if other programs are at work: the comparison is then not fair, however it alternates."""
    load = load_average()
    if load is not None and load > BUSY:
        say(
            f"{load:.1f} threads of other programs have been at work lately. PyTorch's threads meet after every "
            "operation and suffer far more from that than a pipeline does: ratios will flatter threadloom. Wait."
        )


def machine_line() -> str:
    """Say what was measured on, and with which versions."""
    machine = detect()
    versions = []
    for name in ("torch", "numba", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{machine.cpu}, {machine.logical_cores} cores, Python {platform.python_version()}, {', '.join(versions)}"


def write(out: Path, comparisons: Sequence[Comparison]) -> None:
    """Write JSON, Markdown and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    content = {
        "machine": machine_line(),
        "load_average": load,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (out / "throughput.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "throughput.md").write_text(markdown(comparisons, machine_line()))
    figure(comparisons, machine_line()).savefig(out / "throughput.png")


def show(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("config", "side") else "right")
    for row in rows(comparisons):
        table.add_row(*row)
    console.print(table)
    for comparison in comparisons:
        console.print(f"{comparison.config}: checked {comparison.checked}", highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "names", multiple=True, metavar="NAME_OR_FILE", help="Repeatable; three by default.")
@click.option("--seconds", type=click.FloatRange(min=0.0), default=20.0, show_default=True,
              help="Seconds that each side runs for, in all rounds together.")  # fmt: skip
@click.option("--delays", default="0", show_default=True, help="Delays of our side, such as 0,1,2.")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option(
    "--precision",
    "precisions",
    default=FLOAT32,
    show_default=True,
    help="Precisions of our side, such as float32,bf16; PyTorch runs under autocast beside those of 16 bits.",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Whether PyTorch runs beside.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/throughput"), show_default=True)
def main(
    names: tuple[str, ...], seconds: float, delays: str, compiled: bool, precisions: str, peers: bool, as_json: bool,
    out: Path,
) -> None:  # fmt: skip
    """Measure training throughput side by side with PyTorch, after checking that both compute the same."""
    if peers and importlib.util.find_spec("torch") is None:
        raise click.ClickException(INSTALL)
    try:
        wanted = [int(delay) for delay in delays.split(",")]
        wanted_precisions = [Precision(name).value for name in precisions.split(",")]
        configs = [load_config(name) for name in names or DEFAULT_CONFIGS]
    except (ValueError, InputError) as error:
        raise click.ClickException(str(error)) from error
    sides = [Side.EAGER, *([Side.COMPILED] if compiled else [])] if peers else []
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 150)
    warn_if_busy(lambda sentence: console.print(f"warning: {sentence}", style="yellow", highlight=False))
    comparisons = []
    for config in configs:
        say = _speaker(console, config.name)
        comparisons.append(compare(config, wanted, sides, seconds, say, wanted_precisions))
        write(out, comparisons)  # after each: what was measured is kept if the next one fails
    show(console, comparisons)
    console.print(f"written to {out}: throughput.json, throughput.md, throughput.png", highlight=False)
    if as_json:
        click.echo((out / "throughput.json").read_text(), nl=False)


def _speaker(console: Console, name: str) -> Callable[[str], None]:
    return lambda sentence: console.print(f"{name}: {sentence}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
