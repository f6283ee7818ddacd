"""Fine-tuning compared with transformers and PEFT: `python -m benchmarks.finetune`.

All weights of a model or adapters of it (LoRA) are trained on random tokens. Both sides open the same folder in Hugging
Face's layout, and the adapters start from the same values. First the losses and gradient norms of two updates are
compared. The products of adapters start as zero, so they do not change the first loss, but its gradient and the second
loss. Then the sides are measured as in `benchmarks.throughput`; the peak memory of each process includes the loading of
the model.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from enum import Enum
from pathlib import Path

import click
import msgspec
from rich.console import Console

from benchmarks.agreement import BITS16, require_equal
from benchmarks.finetune_model import fine_tuning, model_folder
from benchmarks.finetune_results import HEADINGS, finetune_markdown, finetune_rows
from benchmarks.inputs import write_inputs
from benchmarks.ours import measured
from benchmarks.protocol import BF16_MODEL, BF16_WEIGHTS, FLOAT32, Side, SideWorker, TrainingSizes
from benchmarks.results import ThroughputComparison, comparison_figure
from benchmarks.throughput import (
    batch_sizes,
    machine_line,
    measure_sides,
    print_comparisons,
    progress_printer,
    sizes_of,
    warn_if_busy,
    with_batch,
)
from threadloom.stages.config import Config, InputError, LoraConfig, Precision
from threadloom.stages.data import RandomTokens
from threadloom.stages.machine import detect
from threadloom.stages.resolve import from_json, load_config, resolve, to_json
from threadloom.stages.tools.common import changed_config

CHECKED_UPDATES = 2
LEAST_UPDATES = 1
"""Minimum number of updates per round: one takes PyTorch 15 seconds."""
INSTALL = (
    "transformers or PEFT is not installed: run `make bench` or `pip install 'threadloom[bench]'`, or pass --no-peers"
)


class Method(Enum):
    """What is trained. The value is its name in tables."""

    FULL = "all weights"
    LORA = "LoRA"


def peer_precisions(precision: str, method: Method) -> list[str]:
    """Return the precisions of PyTorch that are compared with one of threadloom."""
    if precision not in BITS16:
        return [FLOAT32]
    return ["bf16", BF16_WEIGHTS, *([BF16_MODEL] if method is Method.LORA else [])]


def tuned_config(folder: Path, method: Method, batch: str, rank: int, overrides: Sequence[str]) -> Config:
    """Return the configuration of a fine-tuning of the model in `folder`. Raises ConfigError, ValueError for batch."""
    config = with_batch(load_config(folder), batch)
    name = f"{config.name}, {method.value}"
    if method is Method.LORA:
        name = f"{name} r={rank}"
        config = msgspec.structs.replace(config, lora=LoraConfig(rank=rank, alpha=float(rank), targets=("all-linear",)))
    return changed_config(msgspec.structs.replace(config, name=name), tuple(overrides))


def check_equal(text: str, sizes: TrainingSizes, precision: str) -> str:
    """Compare the first updates of the sides. Return a summary; raise CheckFailed if they differ.

    PyTorch computes in float32, for any precision of threadloom. In 16 bits the first update is compared, since the
    weights are not the same after it.
    """
    updates = 1 if precision in BITS16 else CHECKED_UPDATES
    with SideWorker(Side.OURS, text, sizes, precision=precision) as ours:
        mine = ours.run(updates)
    with tempfile.TemporaryDirectory() as name:
        config = resolve(measured(from_json(text), delay=0, precision=Precision(precision)), sizes.threads)
        source = RandomTokens(config.geometry(), config.batch_sizes, config.seed)
        write_inputs(Path(name), {}, source, config, updates)
        with SideWorker(Side.EAGER, text, sizes, folder=Path(name)) as peer:
            theirs = peer.run(updates)
    return require_equal(mine, theirs, precision)


def compare(
    config: Config, precision: str, peers: Sequence[Side], seconds: float, on_progress: Callable[[str], None]
) -> ThroughputComparison:
    """Compare the results of the sides in one precision, then measure them."""
    text = to_json(config)
    with tempfile.TemporaryDirectory(prefix="threadloom-adapter-") as parent:
        tuned = fine_tuning(config, Path(parent) / "adapter")
        sizes = msgspec.structs.replace(sizes_of(config, detect().logical_cores), fine_tuning=tuned)
        checked = "nothing: no peer was measured"
        if peers:
            on_progress("checking that both sides compute the same")
            checked = check_equal(text, sizes, precision)
        method = Method.LORA if config.lora.rank else Method.FULL
        with ExitStack() as stack:
            workers = [
                SideWorker(side, text, sizes, precision=theirs)
                for theirs in peer_precisions(precision, method)
                for side in peers
            ]
            workers.append(SideWorker(Side.OURS, text, sizes, config.delay, precision=precision))
            for worker in workers:
                stack.enter_context(worker)
            sides = measure_sides(workers, sizes, seconds, on_progress, least_updates=LEAST_UPDATES)
    return ThroughputComparison(f"{config.name}, {precision}", sizes.flops_per_token, checked, sides)


def write_results(out: Path, comparisons: Sequence[ThroughputComparison]) -> None:
    """Write finetune.json, finetune.md and finetune.png."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine_line(), "comparisons": [asdict(comparison) for comparison in comparisons]}
    (out / "finetune.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "finetune.md").write_text(finetune_markdown(comparisons, machine_line()))
    comparison_figure(comparisons, machine_line()).savefig(out / "finetune.png")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "names", multiple=True, default=("smollm2-135m",), show_default=True,
              metavar="NAME_OR_FOLDER", help="A configuration, for random weights in its shape, or the folder of a "
              "model in Hugging Face's layout. Repeatable.")  # fmt: skip
@click.option("--batch", "batches", multiple=True, default=("8x512",), show_default=True,
              metavar="SEQUENCESxTOKENS", help="Repeatable.")  # fmt: skip
@click.option("--method", "methods", multiple=True, type=click.Choice([m.name.lower() for m in Method]),
              default=("full", "lora"), show_default=True, help="Repeatable.")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True,
              help="Rank of the adapters, which all linear layers but the output projection have.")  # fmt: skip
@click.option("--precision", "precisions", default="float32,bf16", show_default=True, help="Precisions of threadloom.")
@click.option("--checkpointing", is_flag=True, help="Also PyTorch with activations recomputed in backward.")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of threadloom.")
@click.option("--seconds", type=click.FloatRange(min=0.0), default=20.0, show_default=True,
              help="Seconds per side, over all rounds; each round has one update or more.")  # fmt: skip
@click.option("--peers/--no-peers", default=True, show_default=True, help="Measure PyTorch too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/finetune"), show_default=True)
def main(
    *, names: tuple[str, ...], batches: tuple[str, ...], methods: tuple[str, ...], rank: int, precisions: str,
    checkpointing: bool, compiled: bool, overrides: tuple[str, ...], seconds: float, peers: bool, as_json: bool,
    out: Path,
) -> None:  # fmt: skip
    """Measure fine-tuning and compare it with transformers and PEFT, after checking that both compute the same."""
    if peers and None in map(importlib.util.find_spec, ("torch", "transformers", "peft")):
        raise click.ClickException(INSTALL)
    sides = [Side.EAGER, *([Side.COMPILED] if compiled else []), *([Side.CHECKPOINTED] if checkpointing else [])]
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 160)
    comparisons: list[ThroughputComparison] = []
    with tempfile.TemporaryDirectory(prefix="threadloom-models-") as parent:
        try:
            wanted = [Precision(name).value for name in precisions.split(",")]
            context = max(batch_sizes(batch)[1] for batch in batches)
            folders = [model_folder(name, context, Path(parent)) for name in names]
            configs = [
                tuned_config(folder, Method[method.upper()], batch, rank, overrides)
                for folder in folders
                for batch in batches
                for method in methods
            ]
        except (ValueError, InputError) as error:
            raise click.ClickException(str(error)) from error
        warn_if_busy(lambda text: console.print(f"warning: {text}", style="yellow", highlight=False))
        for config in configs:
            for precision in wanted:
                on_progress = progress_printer(console, f"{config.name}, {precision}")
                comparisons.append(compare(config, precision, sides if peers else [], seconds, on_progress))
                write_results(out, comparisons)  # after each, so that it is kept if the next one fails
    print_comparisons(console, comparisons, HEADINGS, finetune_rows)
    console.print(f"written to {out}: finetune.json, finetune.md, finetune.png", highlight=False)
    if as_json:
        click.echo((out / "finetune.json").read_text(), nl=False)


if __name__ == "__main__":
    main()
