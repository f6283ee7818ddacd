"""`threadloom train --estimate`: what a run will take, in memory and time, without a run and without its directory.

Memory is the plan that training allocates to the byte, with the process's own: what this process held when its kernels
were loaded, before anything was built. Time comes from a few seconds of real updates on random tokens, which take as
long as those on a text, and of real evaluation.
"""

import subprocess
import time
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from loguru import logger

from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, Precision, ResolvedConfig
from threadloom.stages.console import module_command, resident_bytes
from threadloom.stages.data import TokenIds, read_text, train_tokenizer
from threadloom.stages.machine import detect, load_warning
from threadloom.stages.memory import FLOAT, Bank, format_lanes, format_memory_plan, memory_plan
from threadloom.stages.models import initialise, parameter_count
from threadloom.stages.resolve import (
    choose_precision_and_warn,
    gemm_settings,
    resolve,
    with_precision,
    with_tuned_settings,
)
from threadloom.stages.step import ValidationLoss
from threadloom.stages.training import ENDLESS, SLOW, compile_kernels, compute_for, tokens_per_second

PICTURES = 45_000_000
"""Bytes that Matplotlib and the pictures add when the run ends; measured, and held by a test."""
PROCESS = "libraries, kernels"
SHORTEST, LONGEST = 0.5, 60.0
"""Seconds of updates."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    config: ResolvedConfig
    memory: dict[str, int]
    """Bytes: the plan, and the process's own."""
    available: int | None
    """Bytes of memory that can be had now."""
    update: float | None
    """Seconds of an update; None where the run would not fit, so that nothing was measured."""
    measured: float
    """Seconds that the updates were measured for."""
    evaluation: float
    """Seconds of an evaluation of the most windows that it may have, on one core."""
    final_evaluation: float

    @property
    def fits(self) -> bool:
        """Whether the memory is there."""
        return self.available is None or sum(self.memory.values()) - self.memory[PROCESS] <= self.available

    @property
    def evaluations(self) -> int:
        """Before the one that ends the run."""
        return due(self.config.steps, self.config.evaluation.interval) - 1

    @property
    def checkpoints(self) -> int:
        """Written in all."""
        return due(self.config.steps, self.config.checkpoint.interval)

    @property
    def seconds(self) -> float | None:
        """Of the whole run: evaluations take a core from the updates beside them, and the last one is waited for."""
        if self.update is None:
            return None
        beside = self.evaluations * self.evaluation / available_cores()
        return self.config.steps * self.update + beside + self.final_evaluation


def due(steps: int, interval: int) -> int:
    """Return how often something is done in so many updates: every `interval` of them, and after the last one."""
    return (steps - 1) // interval + 1 if interval else 1


def estimate_run(config: Config, *, tuned: bool = True, seconds: float = 3.0) -> Estimate:
    """Estimate the run of a configuration by measuring `seconds` of it."""
    machine, cores = detect(), available_cores()
    if words := load_warning():
        logger.warning(words)
    config = with_precision(config, choose_precision_and_warn(config).precision)
    vocabulary = None
    if config.model.vocab_size is None:
        vocabulary = train_tokenizer(config.data, None, read_text(config.data.text).text).vocab_size
    if tuned:
        config = with_tuned_settings(config, machine)
    resolved = resolve(config, cores, vocabulary)
    memory = planned_memory(resolved, _process_bytes(resolved.precision))
    found = Estimate(resolved, memory, machine.memory_available, None, 0.0, 0.0, 0.0)
    if not found.fits:
        return found
    seconds = min(max(seconds, SHORTEST), LONGEST)
    logger.info("measuring updates on random tokens for {:.1f} s", seconds)
    rate = tokens_per_second(msgspec.structs.replace(resolved, steps=ENDLESS), seconds)
    sequence, windows = _evaluation_seconds(resolved), resolved.evaluation
    return replace(
        found,
        update=resolved.sequences * resolved.model.context / rate,
        measured=seconds,
        evaluation=sequence * windows.batches * resolved.batch_size,
        final_evaluation=sequence * windows.final_batches * resolved.batch_size,
    )


def _process_bytes(precision: Precision) -> int:
    """Return what a process holds that has loaded its kernels; one that has compiled them holds the compiler's, too."""
    if compile_kernels(precision=precision) <= SLOW:
        return resident_bytes()
    fresh = subprocess.run(
        module_command("threadloom.stages.child_processes.process_memory", precision.value),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return int(fresh.stdout)


def planned_memory(config: ResolvedConfig, process: int) -> dict[str, int]:
    """Return what a run of a resolved configuration uses, part by part; `process`: before anything was built."""
    memory = compute_for(config.precision, config.model.geometry(), config.micro_batch).memory
    return {PROCESS: process, **memory_plan(config, memory), "pictures, at the end": PICTURES}


class _OneMicroBatch:
    """Random tokens to evaluate once."""

    micro_batches = 1

    def __init__(self, vocabulary: int, tokens: int) -> None:
        self.tokens = tokens
        self._vocabulary = vocabulary

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        random = np.random.default_rng(0)
        ids[:] = random.integers(0, self._vocabulary, ids.shape)
        targets[:] = random.integers(0, self._vocabulary, targets.shape)


def _evaluation_seconds(config: ResolvedConfig) -> float:
    """Return what evaluating a sequence takes on one core, the best of a few micro-batches."""
    geometry, sequences = config.model.geometry(), config.micro_batch
    compute = compute_for(config.precision, geometry, sequences)
    bank, evaluator = Bank(geometry, compute.memory.allocate_packed()), ValidationLoss(compute)
    initialise(bank.arena, geometry, config.seed)
    compute.pack_from_master(bank)
    windows = _OneMicroBatch(geometry.vocabulary, sequences * geometry.context)
    taken = []
    with gemm_settings(config):
        for _ in range(3):
            begin = time.perf_counter()
            evaluator.mean_loss(bank, windows)
            taken.append(time.perf_counter() - begin)
    return min(taken) / sequences


def estimate_text(found: Estimate) -> str:
    """Return the estimate as a person reads it, with how it is known."""
    config, geometry = found.config, found.config.model.geometry()
    lines = [
        f"{config.name}: {parameter_count(geometry):,} parameters",
        f"{config.steps:,} updates of {config.sequences} x {geometry.context} tokens",
        f"micro-batches of {config.micro_batch}, {format_lanes(config)}, delay {config.delay}",
        "",
        "memory",
        format_memory_plan(found.memory),
        "",
    ]
    available = f"{(found.available or 0) / 1e6:,.0f} MB are available"
    if found.update is None or found.seconds is None:
        lines.append(f"It does not fit: {available}. Lower batch_size, micro_batch, lanes or the model's sizes.")
        return "\n".join(lines)
    beside = f"  {found.evaluations:,} evaluations of {found.evaluation:,.2f} s at most on one core, beside updates"
    size = parameter_count(geometry) * FLOAT * (found.config.delay + 3)
    lines += [
        "time",
        f"  {config.steps:,} updates of {1e3 * found.update:,.1f} ms: {duration(config.steps * found.update)}",
        beside,
        f"  the evaluation that ends the run: {found.final_evaluation:,.2f} s at most",
        f"  in all about {duration(found.seconds)}",
        f"  not counted: reading the text; {found.checkpoints:,} checkpoints of {size / 1e6:,.0f} MB each",
        "",
        f"How it is known: the times are those of {found.measured:.1f} s of updates on random tokens and of three",
        "micro-batches of evaluation, measured here just now. The memory is the plan that training allocates, what",
        "this process held with its kernels loaded, and what pictures took elsewhere. Preparing a text takes memory of",
        "its own, which is given back before training.",
    ]
    if found.available is not None:
        lines.insert(lines.index("time"), f"  {available}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a duration as a person says it."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
