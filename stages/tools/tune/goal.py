"""`threadloom tune --goal loss=...`: the settings with the least expected time to a loss.

Speed, delay and learning rate are searched one after another, each in its share of the budget: the fastest sizes and
thread counts at delay 0, the delays with them, and the learning rate and warm-up by pilots with successive halving.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from loguru import logger
from rich.console import Console
from rich.table import Table

from threadloom.pipeline import available_cores, format_duration
from threadloom.stages.config import Config, ConfigError
from threadloom.stages.machine import detect
from threadloom.stages.resolve import (
    TunedSettings,
    delay_costs,
    resolve,
    stage_threads,
    to_json,
    with_defaults,
    with_precision,
)
from threadloom.stages.storage import atomic_write
from threadloom.stages.tools.common import report_console
from threadloom.stages.tools.tune.delays import DelayChoice, DelaySpeed, choose_delay
from threadloom.stages.tools.tune.halving import (
    HalvingResult,
    Pilot,
    least_updates,
    most_candidates,
    rungs,
    successive_halving,
    updates_to_loss,
)
from threadloom.stages.tools.tune.pilots import RateChoice, candidates, pilots_on_text
from threadloom.stages.tools.tune.tuning import run_tuning
from threadloom.stages.training import compile_kernels_of, measured_config, tokens_per_second

SPEED_SHARE, DELAY_SHARE = 0.3, 0.15
"""Shares of the budget for the search of sizes and threads and for the comparison of delays; pilots get the rest."""
ROUNDS = 4
DELAYS = (0, 1, 2)
PILOT_EFFICIENCY = 0.7
"""Share of the time of pilots that is spent on updates; the rest is their set-up and evaluation."""
MOST_STEPS = 1e8
"""Estimates of more updates than this mean that the goal is out of reach."""


@dataclass(frozen=True)
class Goal:
    """The aim of a tuning: a loss in nats per token, or the highest throughput (None)."""

    loss: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """Return the goal in a text such as "loss=1.9" or "throughput". Raises ConfigError."""
        if text == "throughput":
            return cls()
        found = re.fullmatch(r"loss=(\d+\.?\d*|\.\d+)", text)
        if not found or not 0.0 < float(found[1]) < math.inf:
            raise ConfigError("--goal", expected="throughput, or loss=NUMBER such as loss=1.9", got=text)
        return cls(float(found[1]))


@dataclass(frozen=True)
class GoalResult:
    """The settings with the least expected time to a loss, and the estimate of that time."""

    config: Config
    """The configuration with the chosen settings."""
    delay: DelayChoice
    halving: HalvingResult[RateChoice] | None
    """None if the budget was too small for pilots."""
    rate: RateChoice | None
    """The best candidate of the pilots, with a warm-up that the delay permits."""
    updates: float
    """Updates to the goal with the chosen delay; inf if unknown."""
    seconds_per_update: float


def run_goal(
    config: Config,
    goal: Goal,
    budget: float,
    write: Path | None,
    console: Console | None = None,
    picture: Path | None = None,
    precisions: Sequence[str] = (),
) -> None:
    """Search for the settings with which `config` reaches the loss of `goal` first; print and optionally write them.

    `picture` is the file of the picture of the trials, by default next to the tuning record. `precisions` are as in
    `run_tuning`: the chosen one is that of the other searches and of the result.
    Raises the errors of a run for a text that cannot be read, and those of `run_tuning`.
    """
    assert goal.loss is not None, "throughput is the goal of run_tuning"
    console = console or report_console(least=80, in_files=120)
    tuned = run_tuning(config, SPEED_SHARE * budget, picture, console, precisions)
    config = with_defaults(with_precision(config, tuned.precision), tuned.search.chosen)
    speeds = _measure_delays(config, tuned.search.chosen, DELAY_SHARE * budget)
    delay = choose_delay(speeds, delay_costs(config), min(config.schedule.synchronous / config.steps, 1.0))
    rate = {speed.delay: max(speed.rates) for speed in speeds}
    halving = _search_rates(config, rate[0], (1.0 - SPEED_SHARE - DELAY_SHARE) * budget)
    result = _result(config, goal.loss, delay, halving, rate[delay.delay])
    if halving:
        console.print(_pilots_table(halving))
    for sentence in _sentences(result, goal.loss):
        console.print(sentence, highlight=False, soft_wrap=True)
    if write:
        atomic_write(write, to_json(result.config).encode())
        console.print(
            f"Written to {write}; train with `threadloom train --config {write}`.", highlight=False, soft_wrap=True
        )


def _measure_delays(config: Config, tuned: TunedSettings, budget: float) -> list[DelaySpeed]:
    """Measure the delays in alternated rounds on random tokens; the slots follow from the delay."""
    threads, cores = stage_threads(config).count, available_cores()
    configs = {}
    for delay in DELAYS:
        wanted = measured_config(msgspec.structs.replace(config, slots=tuned.slots if not delay else None), delay)
        configs[delay] = resolve(wanted, cores, threads=threads)
    for found in {found.delay_correction: found for found in configs.values()}.values():
        compile_kernels_of(found)
    seconds = budget / (ROUNDS * len(DELAYS))
    rates: dict[int, list[float]] = {delay: [] for delay in DELAYS}
    for number in range(ROUNDS):
        logger.info("comparing delays: round {} of {}", number + 1, ROUNDS)
        for delay in DELAYS if number % 2 == 0 else reversed(DELAYS):
            rates[delay].append(tokens_per_second(configs[delay], seconds))
    return [DelaySpeed(delay, tuple(found)) for delay, found in rates.items()]


def _search_rates(config: Config, tokens_per_s: float, budget: float) -> HalvingResult[RateChoice] | None:
    """Return the result of the pilots at delay 0; None, with a warning, if the budget is too small for them."""
    updates_per_s = tokens_per_s / (config.sequences * config.model.context)
    updates = int(PILOT_EFFICIENCY * budget * updates_per_s)
    choices = candidates(config)
    choices = choices[: most_candidates(len(choices), updates)]
    if not choices:
        needed = least_updates() / updates_per_s / PILOT_EFFICIENCY / (1.0 - SPEED_SHARE - DELAY_SHARE)
        logger.warning(
            "the learning rate is not searched: {:.0f} s are too short for pilots at {:.1f} updates/s. Hint: "
            "--budget {:.0f}", budget, updates_per_s, math.ceil(needed / 10.0) * 10,
        )  # fmt: skip
        return None
    plan = rungs(len(choices), updates)
    at_zero = msgspec.structs.replace(config, delay=0)
    with pilots_on_text(at_zero, available_cores(), detect().memory_available) as train:

        def reported(choice: RateChoice, updates: int) -> Pilot[RateChoice]:
            pilot = train(choice, updates)
            logger.info(
                "pilot of {} updates: learning rate {:.3g}, warm-up {:.0%}, validation loss {:.4f}",
                updates, choice.applied(at_zero, updates).optimizer.lr, choice.warmup, pilot.loss,
            )  # fmt: skip
            return pilot

        return successive_halving(choices, plan, budget, reported)


def _result(
    config: Config, goal: float, delay: DelayChoice, halving: HalvingResult[RateChoice] | None, tokens_per_s: float
) -> GoalResult:
    updates, rate, cost = math.inf, None, delay_costs(config)[delay.delay]
    if halving:
        updates = updates_to_loss(halving.curve(), goal) * cost.updates
        warmup = max(halving.best.warmup, cost.warmup)  # the pilots had no delay
        rate = replace(halving.best, warmup=warmup)
        config = rate.applied(config, config.steps)
    config = msgspec.structs.replace(config, delay=delay.delay, slots=config.slots if not delay.delay else None)
    seconds = config.sequences * config.model.context / tokens_per_s
    return GoalResult(config, delay, halving, rate, updates, seconds)


def _pilots_table(result: HalvingResult[RateChoice]) -> Table:
    """Return one row per candidate with its loss after each length of pilot, the best first."""
    lengths = sorted({pilot.updates for pilot in result.pilots})
    losses = {(pilot.candidate, pilot.updates): pilot.loss for pilot in result.pilots}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (
        f"learning rate for {result.best.length:,} updates",
        "warm-up",
        *(f"{updates:,} updates" for updates in lengths),
    ):
        table.add_column(heading, justify="right")

    def rank(choice: RateChoice) -> list[float]:
        return [losses.get((choice, updates), math.inf) for updates in reversed(lengths)]

    for choice in sorted(dict.fromkeys(pilot.candidate for pilot in result.pilots), key=rank):
        cells = (f"{loss:.4f}" if (loss := losses.get((choice, n))) is not None else "" for n in lengths)
        style = "bold" if choice == result.best else ""
        table.add_row(f"{choice.lr:.3g}", f"{choice.warmup:.0%}", *cells, style=style)
    return table


def _sentences(result: GoalResult, goal: float) -> list[str]:
    """Return the conclusions."""
    first, *rest = result.delay.sentences()
    sentences = [f"Delay: {'; '.join([first, *rest])}."]
    if result.halving is None or result.rate is None:
        return sentences
    config = result.config
    sentences.append(
        f"Learning rate: {config.optimizer.lr:.3g} for {config.steps:,} updates, with a warm-up of "
        f"{result.rate.warmup:.0%}."
    )
    if not result.halving.complete:
        sentences.append("The budget ended the pilots before the longest one; a longer --budget compares them further.")
    if result.updates >= MOST_STEPS:
        return [*sentences, f"A loss of {goal:g} is out of reach of an estimate from these pilots."]
    duration = format_duration(result.updates * result.seconds_per_update)
    longest = result.halving.curve()[-1].updates
    sentences.append(
        f"A loss of {goal:g} may take {result.updates:,.0f} updates, {duration}: an extrapolation from pilots of up to "
        f"{longest:,} updates, which can be off by a factor of several. The steps remain those of the configuration."
    )
    return sentences
