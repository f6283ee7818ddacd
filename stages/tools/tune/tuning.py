"""The measurements of `threadloom tune`: a search whose trials are short runs on random tokens.

`search` decides what to try, `space` lists the alternatives, `table` prints the result, and
`stages.resolve.tuning_record` stores it for `train`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger
from rich.console import Console

from threadloom.kernels import blas_info
from threadloom.kernels.compiling import write_problem
from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, ConfigError, Gemm, Precision
from threadloom.stages.machine import Machine, detect, load_warning
from threadloom.stages.resolve import (
    TunedSettings,
    TunedValue,
    TuningRecord,
    choose_precision_and_warn,
    explicit_settings,
    record_path,
    resolve,
    stage_threads,
    with_defaults,
    with_precision,
    write_record,
)
from threadloom.stages.run import planned_memory
from threadloom.stages.tools.common import report_console
from threadloom.stages.tools.tune.picture import check_picture_path, picture_of_search, write_picture
from threadloom.stages.tools.tune.precisions import SHARE, PrecisionRace, permitted, race_precisions
from threadloom.stages.tools.tune.progress import shown_progress
from threadloom.stages.tools.tune.search import SearchResult, Trial, search
from threadloom.stages.tools.tune.space import SEPARATE_GEMM, Limits
from threadloom.stages.tools.tune.stage_shares import shares_of
from threadloom.stages.tools.tune.table import TRIALS_WANTED, conclusions, trials_table
from threadloom.stages.training import RANDOM_VOCABULARY, compile_kernels_of, measured_config, short_run

MIN_TRIAL_SECONDS, MAX_TRIAL_SECONDS = 0.25, 2.0
LONGEST_TRIAL = 2.0
"""Limit of a trial as a multiple of the duration of the first one, which has the defaults."""


class TuningError(ConfigError):
    """The arguments of a tuning are invalid."""


@dataclass(frozen=True)
class Tuning:
    """The result of a tuning."""

    precision: Precision
    """The precision that the settings were measured in: that of the configuration, or a permitted faster one."""
    search: SearchResult


@dataclass
class Trials:
    """Measures choices for one configuration, each in a separate run on random tokens."""

    config: Config
    cores: int
    seconds: float
    """Duration of the measurement in a trial, after its warm-up."""
    limit: float = math.inf
    """Seconds after which a trial is stopped: settings that are far slower than the defaults cost no more."""

    def __call__(self, choice: TunedSettings) -> Trial:
        """Measure the pipeline with the settings of `choice`; the duration of the trial includes its setup."""
        begin = time.perf_counter()
        resolved = resolve(with_defaults(self.config, choice), self.cores)
        run = short_run(resolved, self.seconds, self.limit)
        seconds = time.perf_counter() - begin
        return Trial(run.tokens_per_s, seconds, sum(planned_memory(resolved).values()), shares_of(run.statistics))

    def warm_up(self, choice: TunedSettings) -> float:
        """Measure a first trial, which fills caches, return its duration, and limit the others to a multiple of it."""
        seconds = self(choice).seconds
        self.limit = max(LONGEST_TRIAL * seconds, self.seconds)
        return seconds


def run_tuning(
    config: Config,
    budget: float,
    picture: Path | None = None,
    console: Console | None = None,
    precisions: Sequence[str] = (),
) -> Tuning:
    """Find the fastest values of the settings that `config` leaves open in `budget` seconds; print and store them.

    `picture` is the file of the picture, by default next to the record. `precisions` are the values of --precision:
    the precisions that may be chosen instead of that of the configuration, or "any". The kernels are compiled before
    and do not count. Raises TuningError for a budget that is not positive.
    """
    if not 0 < budget < math.inf:
        raise TuningError("--budget", expected="a finite number of seconds above 0", got=f"{budget:g}")
    console = console or report_console(least=80, in_files=120)
    if warning := load_warning():
        logger.warning(warning)
    machine, cores, threads = detect(), available_cores(), stage_threads(config)
    config = with_precision(config, choose_precision_and_warn(config).precision)
    if config.model.vocab_size is None:
        logger.info("the vocabulary depends on the text; tuning with {} random tokens", RANDOM_VOCABULARY)
    logger.info("threads: {}, by {}", threads.count, threads.reason)
    seconds = min(MAX_TRIAL_SECONDS, max(MIN_TRIAL_SECONDS, budget / TRIALS_WANTED))
    raced = _raced(config, precisions, threads.count, seconds, SHARE * budget, console)
    if raced is not None:
        config, budget = with_precision(config, raced.chosen), budget - raced.seconds
    measured = measured_config(config)
    resolved = resolve(measured, cores, threads=threads.count)
    default, explicit = TunedSettings.of(resolved), explicit_settings(config)
    path = record_path(config, machine, explicit, threads.count)
    if picture is not None:
        check_picture_path(picture)
    problem = write_problem(path.parent)
    if problem:
        logger.warning(
            "the result of this search can only be printed: {} cannot be written ({}). Hint: set THREADLOOM_CACHE to "
            "a folder that you can write, here and for `threadloom train`", path.parent, problem,
        )  # fmt: skip
    compile_kernels_of(resolved)
    trials = Trials(measured, cores, seconds)
    spent = trials.warm_up(default)
    limits = Limits(threads.count, config.batch_size, config.sequences, _gemms(config.precision), resolved.shared_lanes)
    with shown_progress(console) as on_progress:
        result = search(default, limits, trials, budget - spent, explicit, on_progress)
    console.print(trials_table(result))
    for sentence in conclusions(result):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(_kept(path, _record(config, machine, explicit, result)), highlight=False, soft_wrap=True)
    if raced is not None and raced.chosen is not raced.asked:
        console.print(
            f"These settings are those of precision={raced.chosen.value}: train with --set "
            f"precision={raced.chosen.value}, and compare the loss, since the weights differ.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if picture is not None or problem is None:
        drawn = picture or path.with_suffix(".png")
        if write_picture(picture_of_search(result, config.name), drawn):
            console.print(f"Picture: {drawn}", highlight=False, soft_wrap=True, markup=False)
    return Tuning(config.precision, result)


def _raced(
    config: Config, names: Sequence[str], threads: int, seconds: float, budget: float, console: Console
) -> PrecisionRace | None:
    """Compare the permitted precisions, each with its default settings, and print why one is chosen; None if none is.

    The kernels of each are compiled before.
    """
    others = permitted(names, config.precision)
    if not others:
        return None
    cores = available_cores()
    trials: dict[Precision, tuple[Trials, TunedSettings]] = {}
    for precision in (config.precision, *others):
        measured = measured_config(with_precision(config, precision))
        resolved = resolve(measured, cores, threads=threads)
        compile_kernels_of(resolved)
        trials[precision] = Trials(measured, cores, seconds), TunedSettings.of(resolved)

    def measure(precision: Precision) -> Trial:
        run, default = trials[precision]
        return run(default)

    with shown_progress(console) as on_progress:
        on_progress(f"precisions: {', '.join(each.value for each in others)} instead of {config.precision.value}")
        asked, default = trials[config.precision]
        spent = asked.warm_up(default)
        for run, _ in trials.values():
            run.limit = asked.limit
        found = race_precisions(config.precision, others, measure, budget - spent)
        found = replace(found, seconds=found.seconds + spent)
    console.print(f"Precision: {found.reason}.", highlight=False, soft_wrap=True)
    return found


def _kept(path: Path, record: TuningRecord) -> str:
    """Write a record; return a sentence on where it is, or why it could not be written."""
    try:
        write_record(path, record)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return f"Not kept in {path.parent} ({reason}); pass the settings to `threadloom train` with --set."
    return f"Kept in {path}; `threadloom train` uses it here for this model."


def _gemms(precision: Precision) -> tuple[Gemm, ...]:
    """Return the usable float32 GEMM backends; none for a precision with a separate GEMM."""
    if precision in SEPARATE_GEMM:
        return ()
    blas = blas_info()
    if not blas.name or blas.known_bad:
        logger.info("BLAS is not tried: {}", blas.reason)
        return (Gemm.NUMBA,)
    return Gemm.NUMBA, Gemm.BLAS


def _record(config: Config, machine: Machine, explicit: Mapping[str, TunedValue], result: SearchResult) -> TuningRecord:
    return TuningRecord(
        machine=machine.fingerprint(),
        config=config.name,
        measured_with=dict(explicit),
        choice=result.chosen,
        kept_defaults=result.chosen == result.default,
        reason=result.reason,
        seconds=round(result.seconds, 1),
    )
