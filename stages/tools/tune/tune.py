"""`threadloom tune`: short measured runs on random tokens, what they found, and the file that `train` finds it in.

What is varied is in `stages.tools.tune.space`, the search in `stages.tools.tune.search`; here are the measuring, the
table, and the records. A record holds for one machine, one model, batch and delay, and one version of the package,
which its path is made of:

    $XDG_CACHE_HOME/threadloom/tuned/MACHINE/MODEL-BATCH-DELAY-VERSION.json

`tuned_settings` fills it into what a configuration leaves open. A setting that is given stands; and where one that is
given is not what the record was measured with, the record says nothing and is left alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from loguru import logger
from rich.console import Console
from rich.table import Table

from threadloom.kernels import blas_info
from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, ConfigError, Gemm, Precision
from threadloom.stages.data import random_batches
from threadloom.stages.machine import Machine, cache_root, detect, others_at_work
from threadloom.stages.memory import Update
from threadloom.stages.resolve import choose_and_warn, choose_here, is_open, numerics, resolve, with_precision
from threadloom.stages.storage import atomic_write
from threadloom.stages.tools.tune.search import Findings, Trial, search
from threadloom.stages.tools.tune.space import (
    KEYS,
    OWN_PRODUCT,
    ROUNDING,
    Choice,
    Facts,
    Value,
    asked_for,
    described,
    fill_open,
    pinned,
    worded,
)
from threadloom.stages.training import Training, compile_kernels

RANDOM_VOCABULARY = 65
"""Stands for the vocabulary of a configuration that takes it from the text: tinyshakespeare's characters."""
LONGEST_TRIAL, SHORTEST_TRIAL = 2.0, 0.25
TRIALS_WANTED = 100
"""A whole search takes about as many; a trial gets its part of the budget, within these seconds."""
LEAST_UPDATES = 2
"""Updates that a trial measures at least, whatever they take."""
ENDLESS = 1_000_000_000
"""Updates of a trial's configuration; the clock ends it."""


class TuningError(ConfigError):
    """Tuning cannot be done as asked."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a tuning."""

    machine: str
    config: str
    measured_with: dict[str, Value]
    """The tuned settings that were given, by field of a Choice; a later run must not give others."""
    choice: Choice
    kept_defaults: bool
    reason: str
    seconds: float


# --- where records are --------------------------------------------------------------------------------------------


def record_path(config: Config, machine: Machine, given: dict[str, Value] | None = None) -> Path:
    """Return where the record of a configuration is; `given`: the tuned settings that it was measured with.

    A precision that is left open is settled first, so that a record is of what was computed in.
    """
    model = config.model
    precision = choose_here(config).precision if is_open(config) else config.precision
    vocabulary = "text" if model.vocab_size is None else model.vocab_size
    parts = [
        f"v{vocabulary}t{model.context}l{model.layers}h{model.heads}c{model.channels}",
        f"b{config.batch_size}x{config.gradient_accumulation_steps}",
        f"delay{config.delay}",
        *([] if precision is Precision.FLOAT32 else [precision.value]),
        *([] if config.shared_lanes is None else ["shared" if config.shared_lanes else "apart"]),
        *(f"{name}{worded(value)}" for name, value in sorted((given or {}).items())),
        _package_version(),
    ]
    return cache_root() / "tuned" / machine.fingerprint() / ("-".join(parts) + ".json")


def _package_version() -> str:
    try:
        return version("threadloom")
    except PackageNotFoundError:  # used from a checkout that is not installed
        return "unreleased"


def tuned_settings(config: Config, machine: Machine) -> Config:
    """Return the configuration with this machine's tuned settings in what it leaves open; says so in one line.

    The same configuration comes back where nothing was tuned, the defaults were best, or what was tuned does not fit
    the settings that are given.
    """
    given = pinned(config)
    if len(given) == len(KEYS):
        return config  # a resolved configuration, such as that of a run to be resumed
    for path in dict.fromkeys((record_path(config, machine, given), record_path(config, machine))):
        record = _read(path)
        if record is None or record.kept_defaults:
            continue
        other = {name: value for name, value in given.items() if getattr(record.choice, name) != value}
        if other:
            logger.info("tuned settings are left out: they were measured without {}", described(other))
            continue
        filled = fill_open(config, record.choice)
        new = {name: value for name, value in pinned(filled).items() if name not in given}
        if new:
            logger.info("tuned for this machine: {} ({})", described(new), path)
        return filled
    return config


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("tuned settings in {} cannot be read ({}); remove the file, or tune again", path, error)
        return None


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trials:
    """Measures choices for one configuration, each in a run of its own on random tokens."""

    config: Config
    cores: int
    seconds: float
    """That a trial measures for, after its warm-up."""

    def __call__(self, choice: Choice) -> Trial:
        """Run the pipeline for a moment; its first updates, while it fills, do not count."""
        begin = time.perf_counter()
        resolved = resolve(fill_open(self.config, choice), self.cores)
        training = Training(resolved, random_batches(resolved))
        tokens = resolved.sequences * resolved.model.context
        first = last = None
        with numerics(resolved), training.graph().start(resources=training.resources) as run:
            for event in run:
                if not isinstance(event, Update) or event.step <= resolved.delay:
                    continue
                if first is None:
                    first = event
                last = event
                if event.step - first.step >= LEAST_UPDATES and event.seconds - first.seconds >= self.seconds:
                    break
        assert first is not None
        assert last is not None
        rate = (last.step - first.step) * tokens / max(last.seconds - first.seconds, 1e-9)
        del training
        return Trial(rate, time.perf_counter() - begin)


def run_tuning(config: Config, budget: float, console: Console | None = None) -> Findings:
    """Find the fastest settings of what `config` leaves open, within `budget` seconds; show and keep them.

    Compiling the kernels comes before and does not count.
    """
    if not budget > 0:
        raise TuningError("--budget", expected="a number of seconds above 0", got=f"{budget:g}")
    console = console or Console(width=None if Console().is_terminal else 120)
    if words := others_at_work():
        logger.warning(words)
    machine, cores = detect(), available_cores()
    config = with_precision(config, choose_and_warn(config).precision)
    asked = msgspec.structs.replace(config, steps=ENDLESS)
    if config.model.vocab_size is None:
        logger.info("the vocabulary comes from the text; tuning with {} random tokens", RANDOM_VOCABULARY)
        model = msgspec.structs.replace(config.model, vocab_size=RANDOM_VOCABULARY)
        asked = msgspec.structs.replace(asked, model=model)
    resolved = resolve(asked, cores)
    default = Choice.of(resolved)
    compile_kernels(precision=asked.precision)
    trials = Trials(asked, cores, min(LONGEST_TRIAL, max(SHORTEST_TRIAL, budget / TRIALS_WANTED)))
    trials(default)  # fills caches and raises the clock; does not count
    facts = Facts(cores, config.batch_size, config.sequences, _gemms(config.precision), bool(resolved.shared_lanes))
    given = pinned(config)
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
    record = Record(
        machine=machine.fingerprint(),
        config=config.name,
        measured_with=given,
        choice=findings.chosen,
        kept_defaults=findings.chosen == findings.default,
        reason=findings.reason,
        seconds=round(findings.seconds, 1),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


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
            described(values),
            " ".join(worded(getattr(row.base, name)) for name in values),
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
    said = [f"{findings.trials} trials in {findings.seconds:.0f} s. Choice: {findings.reason}."]
    chosen = findings.chosen.differences(findings.default)
    exact = {name: value for name, value in chosen.items() if name not in ROUNDING}
    rounding = {name: value for name, value in chosen.items() if name in ROUNDING}
    if exact:
        said.append(f"Without any change to the weights: {described(exact)}.")
    if rounding:
        said.append(f"Changes the rounding, and is kept in the run's config.json: {described(rounding)}.")
    if findings.skipped:
        said.append(f"Not tried for want of time: {', '.join(findings.skipped)}; {_longer(findings)}.")
    return said


def _longer(findings: Findings) -> str:
    """Advise a budget for a whole search, by what the trials took."""
    seconds = findings.seconds / max(findings.trials, 1) * TRIALS_WANTED
    return f"a whole search takes about --budget {math.ceil(seconds / 30) * 30} here"
