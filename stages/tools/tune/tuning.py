"""`threadloom tune`: short measured runs on random tokens, what they found, and the file that `train` finds it in.

What is varied is in `stages.tools.tune.space`, the search in `stages.tools.tune.search`, the record in
`stages.resolve.tuning_record`; here are the measuring and the table.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from loguru import logger
from rich.console import Console
from rich.table import Table

from threadloom.kernels import blas_info
from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, ConfigError, Gemm, Precision
from threadloom.stages.machine import Machine, detect, load_warning
from threadloom.stages.resolve import (
    TunedSettings,
    TuningRecord,
    Value,
    choose_and_warn,
    explicit_settings,
    format_settings,
    format_value,
    record_path,
    resolve,
    with_defaults,
    with_precision,
    write_record,
)
from threadloom.stages.tools.tune.search import Findings, Trial, search
from threadloom.stages.tools.tune.space import (
    OWN_PRODUCT,
    ROUNDING,
    Facts,
    asked_for,
)
from threadloom.stages.training import ENDLESS, compile_kernels, tokens_per_second

RANDOM_VOCABULARY = 65
"""Stands for the vocabulary of a configuration that takes it from the text: tinyshakespeare's characters."""
LONGEST_TRIAL, SHORTEST_TRIAL = 2.0, 0.25
TRIALS_WANTED = 100
"""A whole search takes about as many; a trial gets its part of the budget, within these seconds."""


class TuningError(ConfigError):
    """Tuning cannot be done as asked."""


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trials:
    """Measures choices for one configuration, each in a run of its own on random tokens."""

    config: Config
    cores: int
    seconds: float
    """That a trial measures for, after its warm-up."""

    def __call__(self, choice: TunedSettings) -> Trial:
        """Run the pipeline for a moment; building it counts in `seconds` of the result alone."""
        begin = time.perf_counter()
        rate = tokens_per_second(resolve(with_defaults(self.config, choice), self.cores), self.seconds)
        return Trial(rate, time.perf_counter() - begin)


def run_tuning(config: Config, budget: float, console: Console | None = None) -> Findings:
    """Find the fastest settings of what `config` leaves open, within `budget` seconds; show and keep them.

    Compiling the kernels comes before and does not count.
    """
    if not budget > 0:
        raise TuningError("--budget", expected="a number of seconds above 0", got=f"{budget:g}")
    console = console or Console(width=None if Console().is_terminal else 120)
    if words := load_warning():
        logger.warning(words)
    machine, cores = detect(), available_cores()
    config = with_precision(config, choose_and_warn(config).precision)
    asked = msgspec.structs.replace(config, steps=ENDLESS)
    if config.model.vocab_size is None:
        logger.info("the vocabulary comes from the text; tuning with {} random tokens", RANDOM_VOCABULARY)
        model = msgspec.structs.replace(config.model, vocab_size=RANDOM_VOCABULARY)
        asked = msgspec.structs.replace(asked, model=model)
    resolved = resolve(asked, cores)
    default = TunedSettings.of(resolved)
    compile_kernels(precision=asked.precision)
    trials = Trials(asked, cores, min(LONGEST_TRIAL, max(SHORTEST_TRIAL, budget / TRIALS_WANTED)))
    trials(default)  # fills caches and raises the clock; does not count
    facts = Facts(cores, config.batch_size, config.sequences, _gemms(config.precision), bool(resolved.shared_lanes))
    given = explicit_settings(config)
    with _shown(console) as say:
        findings = search(default, facts, trials, budget, given, say)
    console.print(table_of(findings))
    for sentence in conclusions(findings):
        console.print(sentence, highlight=False, soft_wrap=True)
    path = record_path(config, machine, given)
    _keep(path, config, machine, given, findings)
    console.print(f"Kept in {path}; `threadloom train` uses it here for this model.", highlight=False, soft_wrap=True)
    return findings


def _gemms(precision: Precision) -> tuple[Gemm, ...]:
    """The float32 products that are sound here; none where the precision has a product of its own."""
    if precision in OWN_PRODUCT:
        return ()
    blas = blas_info()
    if not blas.name or blas.known_bad:
        logger.info("BLAS is not tried: {}", blas.reason)
        return (Gemm.NUMBA,)
    return Gemm.NUMBA, Gemm.BLAS


def _keep(path: Path, config: Config, machine: Machine, given: dict[str, Value], findings: Findings) -> None:
    record = TuningRecord(
        machine=machine.fingerprint(),
        config=config.name,
        measured_with=given,
        choice=findings.chosen,
        kept_defaults=findings.chosen == findings.default,
        reason=findings.reason,
        seconds=round(findings.seconds, 1),
    )
    write_record(path, record)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[str], None]]:
    """Say what is being tried: in one living line on a terminal, as log lines elsewhere."""
    if console.is_terminal:
        with console.status("tuning") as status:
            yield lambda sentence: status.update(f"tuning: {sentence}")
    else:
        yield lambda sentence: logger.info("trying {}", sentence)


# --- showing ------------------------------------------------------------------------------------------------------


def table_of(findings: Findings) -> Table:
    """Return what was tried: each alternative with its ratio to the best that was known when it was tried."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("varied")
    table.add_column("tried")
    table.add_column("against")
    table.add_column("tokens/s", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("spread", justify="right")
    table.add_column("rounds", justify="right")
    table.add_column("rounding")
    shown = ""
    for row in findings.compared:
        low, high = row.spread
        values = asked_for(row.choice, row.base)
        table.add_row(
            "" if row.axis == shown else row.axis,
            format_settings(values),
            " ".join(format_value(getattr(row.base, name)) for name in values),
            f"{sorted(row.rates)[len(row.rates) // 2]:,.0f}",
            f"{row.ratio:.3f}",
            f"{low:.2f} to {high:.2f}",
            str(len(row.ratios)),
            "changes" if row.changes_rounding else "same bits",
            style="bold" if row.choice == findings.chosen else "",
        )
        shown = row.axis
    return table


def conclusions(findings: Findings) -> list[str]:
    """Return what to say under the table, a sentence each."""
    said = [f"{findings.trials} trials in {findings.seconds:.0f} s. TunedSettings: {findings.reason}."]
    chosen = findings.chosen.differences(findings.default)
    exact = {name: value for name, value in chosen.items() if name not in ROUNDING}
    rounding = {name: value for name, value in chosen.items() if name in ROUNDING}
    if exact:
        said.append(f"Without any change to the weights: {format_settings(exact)}.")
    if rounding:
        said.append(f"Changes the rounding, and is kept in the run's config.json: {format_settings(rounding)}.")
    if findings.skipped:
        said.append(f"Not tried for want of time: {', '.join(findings.skipped)}; {_longer(findings)}.")
    return said


def _longer(findings: Findings) -> str:
    """Advise a budget for a whole search, by what the trials took."""
    seconds = findings.seconds / max(findings.trials, 1) * TRIALS_WANTED
    return f"a whole search takes about --budget {math.ceil(seconds / 30) * 30} here"
