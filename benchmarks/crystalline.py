"""The crystalline options, claimed and measured: `python -m benchmarks.crystalline`.

Every training is one line of a file of results, from which an interrupted measurement goes on. Losses do not depend on
speed, so trainings run two at a time, with one thread each. Speeds are measured apart (`--speed`), on a quiet machine,
one training at a time with all threads, every variant next to the plain one in alternating rounds. With the speeds
known, `--equal-seconds` trains each variant again for as many updates as take the seconds of the plain training.
A second table has the losses by the frequency of the predicted token.
"""

import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich.console import Console

from benchmarks.convergence import TINYSHAKESPEARE
from benchmarks.crystalline_frequency import frequency_table, losses_by_frequency
from benchmarks.crystalline_picture import write_plot
from benchmarks.crystalline_results import Result, Results, Speed
from benchmarks.crystalline_rows import BASELINE, CONFIGURATIONS, Variant, variants_of
from benchmarks.crystalline_table import markdown_table
from threadloom.stages.config import Config, InputError
from threadloom.stages.resolve import apply_overrides, load_config
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode

QUIET = ("pictures=false", "trace.batches=0", "checkpoint.interval=0", "evaluation.interval=0")
"""Settings of every training here: nothing but the updates and the evaluation at the end."""
ONE_THREAD = ("threads.total=1", "lanes=2")
"""Settings of trainings that run two at a time; the number of lanes is that of two threads, so the bits are too."""
SPEED_UPDATES = {"nanogpt-cpu": 400, "small": 60}
"""Configuration → updates of one training of `--speed`, some seconds."""


class Job(NamedTuple):
    """One training, as sent to a worker process."""

    config: str
    variant: Variant
    precision: str
    seed: int
    steps: int | None
    """Updates; None: those of the configuration."""
    texts: tuple[str, ...]
    one_thread: bool


def config_of(job: Job) -> Config:
    """Return the configuration of a training. Raises ConfigError for settings that do not exist."""
    settings = (*CONFIGURATIONS[job.config], *QUIET, *job.variant.settings, f"precision={job.precision}")
    settings += (f"seed={job.seed}", *(ONE_THREAD if job.one_thread else ()))
    settings += (f"steps={job.steps}",) if job.steps else ()
    config = apply_overrides(load_config(job.config), settings)
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=job.texts))


def trained(job: Job) -> Result:
    """Run one training in a temporary folder and return its loss and speed.

    Raises ValueError for a variant that the program refuses; other errors of ours do not pass from process to process.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="crystalline-") as folder:
            run = Path(folder) / "run"
            outcome = train(config_of(job), run, RunMode.NEW, tuned=False)
            by_frequency = losses_by_frequency(run)
    except InputError as error:
        raise ValueError(f"{job.config}, {job.variant.name}: {error}") from None
    assert outcome.val_loss is not None
    tokens = outcome.step * outcome.config.sequences * outcome.config.model.context
    return Result(
        config=job.config, variant=job.variant.name, settings=job.variant.settings, precision=job.precision,
        seed=job.seed, steps=outcome.step, loss=outcome.val_loss, tokens_per_s=tokens / outcome.seconds,
        text=job.texts, by_frequency=by_frequency,
    )  # fmt: skip


def _silence() -> None:
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def in_processes(jobs: Sequence[Job], workers: int) -> Iterable[Result]:
    """Yield the results of trainings, each in a process, `workers` at a time, in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_silence, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(trained, job) for job in jobs]):
            yield future.result()


def measure_losses(results: Results, jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Run the trainings that the file of results lacks."""
    missing = [job for job in jobs if not results.has(job.config, job.variant, job.precision, job.seed, job.steps)]
    for number, result in enumerate(in_processes(missing, workers), 1):
        results.add(result)
        console.print(
            f"{number}/{len(missing)} {result.config}, {result.variant}, seed {result.seed}, {result.steps:,} updates: "
            f"{result.loss:.4f}",
            highlight=False,
        )


def measure_speeds(results: Results, jobs: Sequence[Job], rounds: int, console: Console) -> None:
    """Measure the speed of each variant relative to the plain one: in each round both train once, in turn."""
    plain = next(job for job in jobs if job.variant.name == BASELINE)
    for job in jobs:
        if job is plain:
            continue
        pairs = []
        for number in range(rounds):
            order = [plain, job] if number % 2 == 0 else [job, plain]
            found = {result.variant: result.tokens_per_s for result in in_processes(order, 1)}
            pairs.append((found[BASELINE], found[job.variant.name]))
        speed = Speed(job.config, job.variant.name, job.variant.settings, job.precision, tuple(pairs))
        results.add_speed(speed)
        console.print(f"{job.config}, {job.variant.name}: {speed.median:.3f} times as fast", highlight=False)


def equal_seconds(results: Results, jobs: Sequence[Job], console: Console) -> list[Job]:
    """Return the trainings of variants with a measured speed for as many updates as take the plain training's time."""
    found = []
    for job in jobs:
        ratio = results.ratio(job.config, job.variant, job.precision)
        if ratio is None or job.variant.name == BASELINE:
            continue
        found.append(job._replace(steps=round(config_of(job).steps * ratio)))
    if not found:
        console.print("no speeds are known: run --speed first")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "configs", multiple=True, type=click.Choice(list(CONFIGURATIONS)), help="Default: all.")
@click.option("--only", default="", help="Names of variants to train, divided by ';'. Default: all.")
@click.option("--seeds", default="2,3,4", show_default=True)
@click.option("--precision", default="bf16", show_default=True)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE_OR_DIR",
    help="Default: for nanogpt-cpu ../shared/data/tinyshakespeare.txt if present, else Python's source.",
)
@click.option("--workers", default=2, show_default=True, help="Trainings at a time, of one thread each.")
@click.option("--speed", is_flag=True, help="Measure speeds instead of losses; the machine must be quiet.")
@click.option("--rounds", default=5, show_default=True, help="With --speed: rounds for each variant.")
@click.option("--equal-seconds", "equal", is_flag=True, help="Train for equal seconds, by the speeds measured before.")
@click.option("--table", is_flag=True, help="Train nothing; print the table of the results and draw the picture.")
@click.option("--results", "path", type=click.Path(path_type=Path), default=Path("runs/crystalline/results.jsonl"),
              show_default=True, help="File of the results, from which a measurement goes on.")  # fmt: skip
def main(
    configs: tuple[str, ...], only: str, seeds: str, precision: str, texts: tuple[str, ...], workers: int, speed: bool,
    rounds: int, equal: bool, table: bool, path: Path,
) -> None:  # fmt: skip
    """Measure what the crystalline options cost and give."""
    console, results = Console(width=None if sys.stdout.isatty() else 120), Results.open(path)
    try:
        for config in () if table else configs or tuple(CONFIGURATIONS):
            jobs = [
                Job(config, variant, precision, int(seed), None, texts or default_texts(config), True)
                for seed in seeds.split(",")
                for _, variant in variants_of(config)
                if not only or variant.name in (BASELINE, *only.split(";"))
            ]
            results.require_text(config, texts or default_texts(config))
            if speed:
                updates = SPEED_UPDATES[config]
                first = [job._replace(steps=updates, one_thread=False) for job in jobs if job.seed == jobs[0].seed]
                measure_speeds(results, first, rounds, console)
            else:
                measure_losses(results, equal_seconds(results, jobs, console) if equal else jobs, workers, console)
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    write_output = console.print
    for config in configs or tuple(CONFIGURATIONS):
        for text in (markdown_table(results, config, precision), frequency_table(results, config, precision)):
            write_output(text, highlight=False, soft_wrap=True, markup=False)
        if picture := write_plot(results, config, precision, path.parent):
            write_output(f"picture: {picture}", highlight=False, soft_wrap=True)


def default_texts(config: str) -> tuple[str, ...]:
    """Return the text of a configuration: tinyshakespeare for characters, which is too short for 10,000 tokens."""
    return (str(TINYSHAKESPEARE),) if config == "nanogpt-cpu" and TINYSHAKESPEARE.exists() else ()


if __name__ == "__main__":
    main()
