"""The estimate of `threadloom train --estimate`: memory and time of a run, without a run directory.

Memory is the plan that training allocates, exact to the byte, and the memory of the process with its kernels loaded.
Time is extrapolated from a few seconds of updates on random tokens, which take as long as those on a text, and from the
evaluation of a few micro-batches.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from loguru import logger

from threadloom.pipeline import available_cores, format_estimate
from threadloom.stages.config import Config, ModelArchitecture, Precision, ResolvedConfig
from threadloom.stages.console import module_output, resident_bytes
from threadloom.stages.data import (
    ChunkedText,
    TextError,
    TokenIds,
    create_tokenizer,
    preparation_bytes,
    prepared_vocabulary,
    read_corpus,
    standard_input,
)
from threadloom.stages.machine import detect, load_warning
from threadloom.stages.memory import FLOAT, Bank, bases_bytes, format_lanes, format_memory_plan
from threadloom.stages.models import initialise, parameter_count
from threadloom.stages.resolve import (
    choose_precision_and_warn,
    gemm_settings,
    resolve,
    stage_threads,
    with_precision,
    with_tuned_settings,
)
from threadloom.stages.run.fitting import planned_memory, remedy
from threadloom.stages.step import ValidationLoss
from threadloom.stages.training import ENDLESS, SLOW, compile_kernels, compute_for, tokens_per_second

PROCESS = "libraries, kernels"
MIN_SECONDS, MAX_SECONDS = 0.5, 60.0
"""Limits of the duration of the measurement."""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a run."""

    config: ResolvedConfig
    memory: dict[str, int]
    """Bytes by part: the memory plan, and the process itself."""
    available: int | None
    """Bytes of available memory; None if unknown."""
    update: float | None
    """Seconds per update; None if the run does not fit, so that nothing was measured."""
    measured: float
    """Duration of the measurement in seconds."""
    evaluation: float
    """Seconds of an evaluation of the maximum number of windows, on one core."""
    final_evaluation: float
    remedy: str = ""
    """Settings that would fit, if the run does not."""

    @property
    def fits(self) -> bool:
        """True if the memory is available."""
        return self.available is None or sum(self.memory.values()) - self.memory[PROCESS] <= self.available

    @property
    def evaluations(self) -> int:
        """Number of evaluations before the final evaluation."""
        return count_due(self.config.steps, self.config.evaluation.interval) - 1

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints of the run."""
        return count_due(self.config.steps, self.config.checkpoint.interval)

    @property
    def seconds(self) -> float | None:
        """Seconds of the run. Evaluations take a core from concurrent updates, except the last, which follows them."""
        if self.update is None:
            return None
        concurrent = self.evaluations * self.evaluation / available_cores()
        return self.config.steps * self.update + concurrent + self.final_evaluation


def count_due(steps: int, interval: int) -> int:
    """Return how often in `steps` updates something is due that is due every `interval` updates and after the last."""
    return (steps - 1) // interval + 1 if interval else 1


def estimate_run(config: Config, *, tuned: bool = True, seconds: float = 3.0) -> Estimate:
    """Estimate the run of a configuration by measuring it for `seconds` seconds."""
    machine, cores = detect(), available_cores()
    if warning := load_warning():
        logger.warning(warning)
    config = with_precision(config, choose_precision_and_warn(config).precision)
    vocabulary, preparation = _text_figures(config)
    threads = stage_threads(config).count
    if tuned:
        config = with_tuned_settings(config, machine, threads)
    resolved = resolve(config, cores, vocabulary, threads=threads)
    process = _process_bytes(resolved.precision, resolved.model.architecture)
    memory = {PROCESS: process, **planned_memory(resolved, preparation)}
    found = Estimate(resolved, memory, machine.memory_available, None, 0.0, 0.0, 0.0)
    if preparation > (machine.memory_available or preparation):
        return replace(found, remedy="a part of the text, or data.tokenizer=bytes")
    if not found.fits:
        return replace(found, remedy=remedy(config, resolved, cores, machine.memory_available or 0))
    seconds = min(max(seconds, MIN_SECONDS), MAX_SECONDS)
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


def _text_figures(config: Config) -> tuple[int | None, int]:
    """Return the size of the vocabulary, if it depends on the text, and the bytes that preparing the text takes."""
    if config.data.prepared:
        return None if config.model.vocab_size else prepared_vocabulary(config.data.prepared), 0
    try:
        with standard_input(config.data.text, Path(tempfile.gettempdir()) / "text", None) as spooled:
            return _figures_of(config, read_corpus(config.data, standard_input=spooled).text)
    except TextError as error:
        if config.model.vocab_size is None:
            raise
        logger.warning("the memory of preparing the text is not part of the estimate: {}", error)
        return None, 0


def _figures_of(config: Config, text: ChunkedText) -> tuple[int | None, int]:
    vocabulary = None if config.model.vocab_size else create_tokenizer(config.data, None, text).vocab_size
    return vocabulary, preparation_bytes(config.data, text)


def _process_bytes(precision: Precision, architecture: ModelArchitecture = ModelArchitecture.GPT2) -> int:
    """Return the memory of a process with its kernels loaded. If this one has compiled them, a new one is measured."""
    if compile_kernels(precision=precision, architecture=architecture) <= SLOW:
        return resident_bytes()
    module = "threadloom.stages.child_processes.process_memory"
    return int(module_output(module, precision.value, architecture.value, quiet=True))


class _OneMicroBatch:
    """One micro-batch of random tokens, as evaluation windows."""

    micro_batches = 1

    def __init__(self, vocabulary: int, tokens: int) -> None:
        self.tokens = tokens
        self._vocabulary = vocabulary

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        random = np.random.default_rng(0)
        ids[:] = random.integers(0, self._vocabulary, ids.shape)
        targets[:] = random.integers(0, self._vocabulary, targets.shape)

    def counted(self, batch: int) -> int:
        return self.tokens


def _evaluation_seconds(config: ResolvedConfig) -> float:
    """Return the seconds to evaluate one sequence on one core, from the fastest of a few micro-batches."""
    geometry, sequences = config.geometry(), config.micro_batch
    compute = compute_for(config.precision, geometry, sequences, recompute=config.recompute)
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
    """Return the estimate as text, with its method."""
    config, geometry = found.config, found.config.geometry()
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
        lines.append(f"The run does not fit: {available}. What would: {found.remedy or 'a smaller model'}.")
        return "\n".join(lines)
    evaluations = (
        f"  {found.evaluations:,} evaluations of at most {found.evaluation:,.2f} s on one core, during updates"
    )
    size = parameter_count(geometry) * FLOAT * (found.config.delay + 3) + bases_bytes(found.config)
    lines += [
        "time",
        f"  {config.steps:,} updates of {1e3 * found.update:,.1f} ms: {format_estimate(config.steps * found.update)}",
        evaluations,
        f"  final evaluation: at most {found.final_evaluation:,.2f} s",
        f"  in total about {format_estimate(found.seconds)}",
        f"  not counted: reading the text; {found.checkpoints:,} checkpoints of {size / 1e6:,.0f} MB each",
        "",
        f"Method: times are extrapolated from {found.measured:.1f} s of updates on random tokens and",
        "three micro-batches of evaluation, measured just now. Memory is the plan that",
        "training allocates, the memory of this process with its kernels loaded, and",
        "that of pictures, measured elsewhere. The preparation of the text is released",
        "before training: the plan lists by how much it exceeds the memory of the",
        "training, which for BPE is estimated from a sample of the text.",
    ]
    if found.available is not None:
        lines.insert(lines.index("time"), f"  {available}")
    return "\n".join(lines)
