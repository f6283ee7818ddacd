"""Training throughput compared with PyTorch, JAX and llm.c: `python -m benchmarks.throughput`.

First the results are compared: from the same weights and tokens, the losses and gradient norms of some updates must be
equal within the accuracy of the number format (`benchmarks.agreement`). Then the sides are measured, each in a separate
process, in alternating rounds, so that other load on the machine affects all of them. threadloom runs at its default
settings; each of its rounds begins and ends with an empty pipeline, so that filling and draining it count.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import BITS16, check_equal
from benchmarks.llm_c import LlmCError, build_library, compiler_line
from benchmarks.model_sizes import model_sizes
from benchmarks.peers import (
    NAMES,
    Peer,
    computes_in,
    parse_peers,
    peer_sides,
    require_peers,
    without_clip_and_decay,
)
from benchmarks.protocol import FLOAT32, Side, SideWorker, TrainingSizes
from benchmarks.results import (
    HEADINGS,
    SideResult,
    ThroughputComparison,
    comparison_figure,
    comparison_markdown,
    comparison_rows,
)
from threadloom.stages.config import Config, InputError, Precision
from threadloom.stages.machine import BUSY, alternate_rounds, detect, load_average
from threadloom.stages.resolve import load_config, resolve, to_json
from threadloom.stages.training import RANDOM_VOCABULARY

DEFAULT_CONFIGS = ("nanogpt-cpu", "small", "optimized", "llama-small")
ROUNDS = 5
LEAST_UPDATES = 3
"""Minimum number of updates per round."""


def sizes_of(config: Config, threads: int) -> TrainingSizes:
    """Return the sizes of a configuration for both sides."""
    geometry = config.model.geometry_with(config.model.vocab_size or RANDOM_VOCABULARY)
    optimizer = resolve(config, threads, geometry.vocabulary).optimizer
    return TrainingSizes(
        model=model_sizes(geometry), sequences=config.sequences, lr=optimizer.lr, beta1=optimizer.beta1,
        beta2=optimizer.beta2, eps=optimizer.eps, weight_decay=optimizer.weight_decay, clip=optimizer.clip,
        threads=threads,
    )  # fmt: skip


def batch_sizes(batch: str) -> tuple[int, int]:
    """Return the sequences and their tokens of a batch such as "8x512". Raises ValueError."""
    try:
        sequences, tokens = map(int, batch.split("x"))
    except ValueError:
        sequences = tokens = 0
    if min(sequences, tokens) < 1:
        raise ValueError(f"--batch {batch}: expected SEQUENCESxTOKENS, for example 8x512")
    return sequences, tokens


def with_batch(config: Config, batch: str) -> Config:
    """Return a configuration with another batch, such as "8x512": sequences and their tokens. Raises ValueError."""
    sequences, tokens = batch_sizes(batch)
    model = msgspec.structs.replace(config.model, context=tokens)
    return msgspec.structs.replace(
        config, name=f"{config.name} {batch}", batch_size=sequences, gradient_accumulation_steps=1, model=model
    )


def measure_sides(
    workers: Sequence[SideWorker], sizes: TrainingSizes, seconds: float, on_progress: Callable[[str], None],
    least_updates: int = LEAST_UPDATES,
) -> list[SideResult]:  # fmt: skip
    """Measure the sides in alternating rounds of at least `least_updates`, `seconds` for each side in total."""
    measured = alternate_rounds(
        workers, seconds, rounds=ROUNDS, least_updates=least_updates, on_progress=on_progress,
        warm_up=least_updates + max(worker.delay for worker in workers),
    )  # fmt: skip
    results = []
    for worker, rounds in zip(workers, measured, strict=True):
        rates = [sizes.tokens * one.updates / one.seconds for one in rounds]
        memory = worker.memory()
        results.append(SideResult(worker.name, worker.side is Side.OURS, rates, memory["peak"], memory["libraries"]))
    return results


def compare_sides(
    config: Config, delays: Sequence[int], peers: Sequence[Side], seconds: float, on_progress: Callable[[str], None],
    precisions: Sequence[str] = (FLOAT32,), llm_c: Path | None = None,
) -> ThroughputComparison:  # fmt: skip
    """Compare the results of the sides on one configuration, then measure them.

    With llm.c, whose library is `llm_c`, every side trains without clipping and weight decay.
    """
    if llm_c:
        config = without_clip_and_decay(config)
    sizes = msgspec.structs.replace(sizes_of(config, detect().logical_cores), llm_c=str(llm_c or ""))
    model = msgspec.structs.replace(config.model, vocab_size=sizes.model.vocabulary)
    text = to_json(msgspec.structs.replace(config, model=model))
    on_progress("checking that both sides compute the same")
    frameworks = {side.framework: side for side in reversed(peers)}  # eager, of PyTorch's modes
    every = [
        f"{framework}: {check_equal(text, sizes, delays, precision, side)}"
        for framework, side in reversed(frameworks.items())
        for precision in precisions
        if computes_in(side, precision)
    ]
    every += [f"no clipping, no weight decay; llm.c by {compiler_line()}"] if llm_c else []
    checked = "; ".join(every) or "nothing: no peer was measured"
    # The peers' 16 bits are bfloat16: PyTorch's autocast has no other format on a CPU.
    theirs = dict.fromkeys("bf16" if precision in BITS16 else FLOAT32 for precision in precisions)
    with ExitStack() as stack:
        workers = [
            SideWorker(side, text, sizes, precision=precision)
            for precision in theirs
            for side in peers
            if computes_in(side, precision)
        ]
        workers += [
            SideWorker(Side.OURS, text, sizes, delay, precision=precision)
            for precision in precisions
            for delay in delays
        ]
        for worker in workers:
            stack.enter_context(worker)
        sides = measure_sides(workers, sizes, seconds, on_progress)
    return ThroughputComparison(config.name, sizes.flops_per_token, checked, sides)


def warn_if_busy(warn: Callable[[str], None]) -> None:
    """Warn if other programs are running, because they slow PyTorch more than threadloom."""
    load = load_average()
    if load is not None and load > BUSY:
        warn(
            f"the load average is {load:.1f}: other programs are running. PyTorch's threads synchronise after every "
            "operation and are slowed more than a pipeline, so ratios will be biased towards threadloom; rerun on an "
            "idle machine"
        )


def machine_line() -> str:
    """Return the machine and the versions of the libraries, as text."""
    machine = detect()
    versions = []
    for name in ("torch", "jax", "numba", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{machine.cpu}, {machine.logical_cores} cores, Python {platform.python_version()}, {', '.join(versions)}"


def write_results(out: Path, comparisons: Sequence[ThroughputComparison]) -> None:
    """Write throughput.json, throughput.md and throughput.png."""
    out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    content = {
        "machine": machine_line(),
        "load_average": load,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (out / "throughput.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "throughput.md").write_text(comparison_markdown(comparisons, machine_line()))
    comparison_figure(comparisons, machine_line()).savefig(out / "throughput.png")


def print_comparisons(
    console: Console,
    comparisons: Sequence[ThroughputComparison],
    headings: Sequence[str] = HEADINGS,
    rows: Callable[[Sequence[ThroughputComparison]], Iterable[Sequence[str]]] = comparison_rows,
) -> None:
    """Print the table; the first two columns are text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for row in rows(comparisons):
        table.add_row(*row)
    console.print(table)
    for comparison in comparisons:
        console.print(f"{comparison.config}: checked {comparison.checked}", highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "names", multiple=True, metavar="NAME_OR_FILE", help="Repeatable; four by default.")
@click.option("--batch", "batches", multiple=True, metavar="SEQUENCESxTOKENS",
              help="Batch of every configuration, for example 8x512; repeatable.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.0), default=20.0, show_default=True,
              help="Seconds per side, over all rounds.")  # fmt: skip
@click.option("--delays", default="0", show_default=True, help="Delays of threadloom, for example 0,1,2.")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option(
    "--precision",
    "precisions",
    default=FLOAT32,
    show_default=True,
    help="Precisions of threadloom, for example float32,bf16; for 16 bits PyTorch runs under autocast.",
)
@click.option("--peer", "wanted_peers", multiple=True, default=[Peer.TORCH.value], show_default=True,
              callback=parse_peers, metavar="NAMES",
              help=f"Programs to compare with, of {', '.join(NAMES)}; repeatable.")  # fmt: skip
@click.option("--llm-c", "clone", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Clone of github.com/karpathy/llm.c, which is compiled for --peer llm.c.")  # fmt: skip
@click.option("--peers/--no-peers", default=True, show_default=True, help="Measure the peers too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/throughput"), show_default=True)
def main(
    *, names: tuple[str, ...], batches: tuple[str, ...], seconds: float, delays: str, compiled: bool, precisions: str,
    wanted_peers: tuple[Peer, ...], clone: Path | None, peers: bool, as_json: bool, out: Path,
) -> None:  # fmt: skip
    """Measure training throughput and compare it with that of peers, after checking that all compute the same."""
    try:
        wanted = [int(delay) for delay in delays.split(",")]
        wanted_precisions = [Precision(name).value for name in precisions.split(",")]
        configs = [load_config(name) for name in names or DEFAULT_CONFIGS]
        if batches:
            configs = [with_batch(config, batch) for config in configs for batch in batches]
        models = {config.name: sizes_of(config, 1).model for config in configs}
    except (ValueError, InputError) as error:
        raise click.ClickException(str(error)) from error
    wanted_peers = wanted_peers if peers else ()
    require_peers(wanted_peers, models, wanted_precisions)
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 150)
    warn_if_busy(lambda text: console.print(f"warning: {text}", style="yellow", highlight=False))
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            llm_c = build_library(clone, Path(folder)) if Peer.LLM_C in wanted_peers else None
        except LlmCError as error:
            raise click.ClickException(str(error)) from error
        sides = peer_sides(wanted_peers, compiled)
        for config in configs:
            progress = progress_printer(console, config.name)
            comparisons.append(compare_sides(config, wanted, sides, seconds, progress, wanted_precisions, llm_c))
            write_results(out, comparisons)  # after each, so that it is kept if the next one fails
    print_comparisons(console, comparisons)
    console.print(f"written to {out}: throughput.json, throughput.md, throughput.png", highlight=False)
    if as_json:
        click.echo((out / "throughput.json").read_text(), nl=False)


def progress_printer(console: Console, name: str) -> Callable[[str], None]:
    """Return a function that prints lines of progress after a name."""
    return lambda text: console.print(f"{name}: {text}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
