"""The learning rates that a rule is fitted on and checked with: `python -m benchmarks.learning_rates`.

Small models are trained through the session of `threadloom train` on a grid of learning rates, two at a time. Every
result is a line of a file, from which an interrupted search goes on. The rule, log lr = a + b log width +
c log tokens + d log updates, is fitted on the best rates of some models, and of some configurations, which were
measured before; others are trained once more at its rate.
"""

import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks.convergence import TINYSHAKESPEARE
from benchmarks.rate_search import (
    CHECKED,
    CONFIGURED,
    FITTED,
    Case,
    fit_rule,
    is_on_grid,
    residual,
    rule_rate,
    searched,
    wanted_rates,
)
from threadloom.pipeline import StageFailure
from threadloom.stages.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    Gpt2Config,
    LlamaConfig,
    ModelArchitecture,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    ThreadsConfig,
    TraceConfig,
)
from threadloom.stages.resolve import WARMUP_SHARE, RateRule
from threadloom.stages.run import train
from threadloom.stages.step import TrainingDiverged
from threadloom.stages.storage import RunMode

SEEDS = (2, 3)
"""The loss at a rate is the mean of these."""


class Job(NamedTuple):
    """One training."""

    case: Case
    rate: float
    seed: int


def config_of(job: Job, texts: tuple[str, ...]) -> Config:
    """Return the configuration of a training."""
    case, rate, seed = job
    return Config(
        name=case.name,
        model=_model_of(case),
        data=DataConfig(text=texts),
        batch_size=case.batch_size,
        lanes=1,
        steps=case.updates,
        seed=seed,
        optimizer=OptimizerConfig(lr=rate, beta2=0.99, weight_decay=0.1),
        schedule=ScheduleConfig(warmup=round(WARMUP_SHARE * case.updates), min_lr=rate / 10),
        threads=ThreadsConfig(total=1),
        evaluation=EvaluationConfig(interval=0, batches=40),
        checkpoint=CheckpointConfig(interval=0),
        trace=TraceConfig(batches=0),
        pictures=False,
    )


def _model_of(case: Case) -> ModelConfig:
    _, layers, heads, context, *_ = case
    if case.architecture is ModelArchitecture.LLAMA:
        return LlamaConfig(context=context, layers=layers, heads=heads, channels=case.channels, tied=True)
    return Gpt2Config(context=context, layers=layers, heads=heads, channels=case.channels, residual_scaling=False)


def final_loss(job: Job, texts: tuple[str, ...]) -> tuple[float, float]:
    """Train a model; return its final validation loss, infinite if the training diverged, and the seconds."""
    with tempfile.TemporaryDirectory(prefix="learning-rates-") as folder:
        try:
            outcome = train(config_of(job, texts), Path(folder) / "run", RunMode.NEW, tuned=False)
        except StageFailure as failure:
            if not isinstance(failure.__cause__, TrainingDiverged):
                raise
            return math.inf, 0.0
    return outcome.val_loss or math.inf, outcome.seconds


class Search:
    """Trainings in worker processes, whose results are kept in a file."""

    def __init__(self, results: Path, texts: tuple[str, ...], workers: int, seeds: Sequence[int] = SEEDS) -> None:
        """Continue the search in the file `results`; nothing is trained before `run`."""
        self._results, self._texts, self._workers, self._seeds = results, texts, workers, seeds
        self._done: dict[tuple[str, float, int], float] = {}
        for line in results.read_text().splitlines() if results.exists() else []:
            record = json.loads(line)
            loss = math.inf if record["loss"] is None else record["loss"]
            self._done[record["model"], record["rate"], record["seed"]] = loss

    def losses(self, case: Case) -> dict[float, float]:
        """Return rate → mean loss of the seeds, for the rates that all seeds were trained at."""
        found: dict[float, list[float]] = {}
        for (name, rate, seed), loss in sorted(self._done.items()):
            if name == case.name and seed in self._seeds:
                found.setdefault(rate, []).append(loss)
        return {rate: mean(losses) for rate, losses in found.items() if len(losses) == len(self._seeds)}

    def run(self, cases: Sequence[Case]) -> None:
        """Search the best rate of every model, the cheapest first."""
        ordered = sorted(cases, key=lambda case: case.cost)
        self._train(lambda: [(case, rate) for case in ordered for rate in wanted_rates(case, self.grid(case))])

    def at(self, rates: Mapping[Case, float]) -> None:
        """Train each model at one rate."""
        self._train(rates.items)

    def grid(self, case: Case) -> dict[float, float]:
        """Return `losses` at the rates of the search."""
        return {rate: loss for rate, loss in self.losses(case).items() if is_on_grid(rate)}

    def _train(self, wanted: Callable[[], Iterable[tuple[Case, float]]]) -> None:
        """Train at what `wanted` returns, which is asked after each result, until all of it is done."""
        context = multiprocessing.get_context("spawn")
        running: dict[Future[tuple[float, float]], Job] = {}
        with ProcessPoolExecutor(self._workers, context, initializer=_quiet) as pool:
            while True:
                jobs = [Job(case, rate, seed) for case, rate in wanted() for seed in self._seeds]
                missing = [job for job in jobs if (job.case.name, job.rate, job.seed) not in self._done]
                for job in [job for job in missing if job not in running.values()][: self._workers - len(running)]:
                    running[pool.submit(final_loss, job, self._texts)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._keep(running.pop(future), *future.result())

    def _keep(self, job: Job, loss: float, seconds: float) -> None:
        self._done[job.case.name, job.rate, job.seed] = loss
        kept = loss if math.isfinite(loss) else None
        record = {"model": job.case.name, "rate": job.rate, "seed": job.seed, "loss": kept, "seconds": seconds}
        self._results.parent.mkdir(parents=True, exist_ok=True)
        with self._results.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _quiet() -> None:
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR")


Known = Sequence[tuple[Case, float]]
"""Models with best rates that were measured elsewhere."""


def report(
    search: Search, fitted: Sequence[Case], checked: Sequence[Case], console: Console, known: Known = ()
) -> RateRule:
    """Search, fit and check, print the tables and return the rule; `known` is part of the fit."""
    search.run((*fitted, *checked))
    return conclude(search, fitted, checked, console, known)


def conclude(
    search: Search, fitted: Sequence[Case], checked: Sequence[Case], console: Console, known: Known = ()
) -> RateRule:
    """Fit the rule to the models whose search is over, train the checked ones at its rate, print the tables."""
    losses = {case.name: search.grid(case) for case in (*fitted, *checked)}
    best = [*((case, rate) for case, rate, _ in searched(fitted, losses)), *known]
    rule = fit_rule(best)
    checks = {case: rule_rate(rule, case) for case, *_ in searched(checked, losses)}
    search.at(checks)
    at_rule = {case: search.losses(case)[rate] for case, rate in checks.items()}
    console.print(rates_table([*searched(fitted, losses), *searched(checked, losses)], rule, at_rule))
    console.print(f"{rule}\nroot mean square of log(rule / best): {residual(rule, best):.3f}", highlight=False)
    return rule


def rates_table(found: Sequence[tuple[Case, float, float]], rule: RateRule, at_rule: Mapping[Case, float]) -> Table:
    """Return the table of models with their best rate, their lowest loss and the rate of the rule.

    `at_rule` has the losses of the checked models at the rate of the rule.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (
        "model",
        "tokens",
        "best rate",
        "lowest loss",
        "rule",
        "rule / best",
        "loss at rule",
        "minus lowest",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for case, best, lowest in found:
        rate = rule_rate(rule, case)
        check = [f"{at_rule[case]:.4f}", f"{at_rule[case] - lowest:+.4f}"] if case in at_rule else ["", ""]
        figures = f"{best:.2e}", f"{lowest:.4f}", f"{rate:.2e}", f"{rate / best:.2f}"
        table.add_row(case.name, str(case.tokens), *figures, *check)
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--results", type=click.Path(path_type=Path), default=Path("runs/learning_rates.jsonl"),
              show_default=True, help="File of the results, from which the search goes on.")  # fmt: skip
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Default: ../shared/data/tinyshakespeare.txt if present, else the source of Python.")  # fmt: skip
@click.option("--workers", default=2, show_default=True, help="Trainings at a time, of one thread each.")
def main(results: Path, texts: tuple[str, ...], workers: int) -> None:
    """Search the best learning rates of small models and fit a rule to them."""
    if not texts and TINYSHAKESPEARE.exists():
        texts = (str(TINYSHAKESPEARE),)
    search = Search(results, texts, workers)
    report(search, FITTED, CHECKED, Console(width=None if sys.stdout.isatty() else 120), CONFIGURED)


if __name__ == "__main__":
    main()
