"""One run in its run directory, from reading the text to drawing the plots."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from threadloom.pipeline import Cancelled, Run, available_cores
from threadloom.stages.checkpoint import (
    AdaptedWeights,
    BaseModel,
    Checkpoint,
    FolderWeights,
    Retention,
)
from threadloom.stages.config import Config, Gemm, Precision, ResolvedConfig
from threadloom.stages.console import StopSignals
from threadloom.stages.data import (
    Dataset,
    keep_standard_input,
    training_batches,
)
from threadloom.stages.embedding import (
    DerivedEmbedding,
    VocabularyFacts,
    bands_by_frequency,
    derived_embedding,
    vocabulary_facts,
)
from threadloom.stages.machine import detect
from threadloom.stages.memory import format_memory_plan, label
from threadloom.stages.models import InitialWeights
from threadloom.stages.resolve import (
    PrecisionChoice,
    choose_precision_here,
    gemm_settings,
    rate_summary,
    require_initial_model,
    require_model_under_adapters,
    resolve,
    stage_threads,
    to_json,
    validate,
    with_precision,
    with_tuned_settings,
)
from threadloom.stages.run.announcement import announce, announce_sequences
from threadloom.stages.run.checkpoint_requests import CheckpointRequests
from threadloom.stages.run.display import Display
from threadloom.stages.run.fitting import planned_memory, require_memory
from threadloom.stages.run.pictures import draw_pictures, new_trace, pictures
from threadloom.stages.run.report import Reporter, WrittenMetrics
from threadloom.stages.run.resuming import (
    as_begun,
    last_checkpoint,
    require_grown_start,
    require_not_grown,
    same_trajectory,
)
from threadloom.stages.run.run_texts import corpus_of, prepared_texts
from threadloom.stages.run.validation_windows import validation_windows
from threadloom.stages.step import CheckpointOutput
from threadloom.stages.storage import MetricsLog, RunDirectory, RunMode, atomic_write, read_metrics
from threadloom.stages.training import Training, compile_kernels_of

if TYPE_CHECKING:
    from threadloom.kernels.matmul import GemmVariant, ProductKind

MIN_VOCABULARY = 2
"""Size of the vocabulary, if it is not known yet, in the first check of the memory."""


@dataclass(frozen=True)
class Outcome:
    """The result of a finished run."""

    run: RunDirectory
    config: ResolvedConfig
    step: int
    val_loss: float | None
    seconds: float
    """Seconds from the first micro-batch to the last event."""
    stopped: str | None = None
    """Why the run has ended before its last update; None if it has not."""


def train(
    config: Config,
    out: Path,
    mode: RunMode = RunMode.NEW,
    *,
    tuned: bool = True,
    force: bool = False,
    signals: StopSignals | None = None,
    base: Path | None = None,
) -> Outcome:
    """Train a configuration in the run directory `out`, or resume the run in it.

    With `tuned`, settings that the configuration leaves open get the values that `threadloom tune` found on this
    machine. With `force`, a run that does not fit into the available memory is started. With `signals`, a stop signal
    during the training writes a checkpoint and then raises `Stopped`. `base` is the folder of the frozen model of a
    resumed run with adapters, if it has been moved.

    Raises ConfigError, TextError, DataError, RunDirectoryError or CheckpointError before the training starts, and
    StageFailure for an error in the pipeline, such as TrainingDiverged.
    """
    validate(config)
    require_model_under_adapters(config)
    if mode is not RunMode.RESUME:
        require_initial_model(config)
        require_not_grown(config)
    # Checks that may refuse the run come first: the claim creates the directory, or removes the run in it.
    choice = choose_precision_here(config) if mode is not RunMode.RESUME else None
    if choice is not None and not force:
        _require_memory(with_precision(config, choice.precision), MIN_VOCABULARY)
    with corpus_of(config, out, mode) as (config, corpus, spooled), RunDirectory.claim(out, mode) as run:
        corpus = corpus and keep_standard_input(corpus, spooled, run.data)
        start = last_checkpoint(run, base) if mode is RunMode.RESUME else None
        require_grown_start(run, config, start)
        if start is not None:
            config = as_begun(config, run)
        elif mode is RunMode.RESUME:
            require_initial_model(config)
        if choice is None:  # a started run is resumed even if its precision is slow on this machine
            choice = choose_precision_here(config, allow_slow=start is not None)
        config = with_precision(config, choice.precision)
        data = prepared_texts(config, corpus, run, mode, None if force else detect().memory_available)
        corpus = None  # closes the temporary file of its conversations, whose disk space the checkpoints may need
        config = _with_bands(config, data)
        threads = stage_threads(config).count
        if tuned:
            config = with_tuned_settings(config, detect(), threads)
        resolved = resolve(config, available_cores(), data.tokenizer.vocab_size, threads=threads)
        if mode is RunMode.RESUME:
            resolved = same_trajectory(resolved, run, start)
        if not force:
            require_memory(config, resolved, available_cores(), detect().memory_available)
        atomic_write(run.config, to_json(resolved).encode())
        if start is not None and start.step == resolved.steps and _is_evaluated(run, start.step):
            return _finished(resolved, run)
        logger.info("{}", rate_summary(config, resolved, resumed=start is not None))
        with gemm_settings(resolved, variants=_measured_variants(resolved) if tuned else {}):
            return _train(resolved, run, data, start, choice, signals)


def _measured_variants(config: ResolvedConfig) -> "Mapping[ProductKind, GemmVariant]":
    """Return the variants of Numba's GEMM for a run, measured once per machine and shapes of a model.

    They are used by this run even if they cannot be kept.
    """
    if config.gemm_backend is not Gemm.NUMBA or config.precision not in (Precision.FLOAT32, Precision.FP16):
        return {}
    from threadloom.stages.speeds import product_shapes, variant_speeds_here  # most starts in bf16 need none

    found = variant_speeds_here(product_shapes(config))
    return found.variants() if found else {}


def _require_memory(config: Config, vocabulary: int) -> None:
    """Raise ConfigError for a run that cannot fit; `vocabulary` is assumed if the text is to decide it."""
    cores = available_cores()
    size = vocabulary if config.model.vocab_size is None else None
    resolved = resolve(config, cores, size, threads=stage_threads(config).count)
    require_memory(config, resolved, cores, detect().memory_available)


def _with_bands(config: Config, data: Dataset) -> Config:
    """Return the configuration with the bands that `embedding.alpha` stands for."""
    embedding, size = config.embedding, config.model.vocab_size or data.tokenizer.vocab_size
    if not (embedding.rank and embedding.alpha):
        return config
    counts = VocabularyFacts(size, tokens=data.train).frequencies()
    bands = bands_by_frequency(counts, embedding.rank, config.model.channels, embedding.alpha)
    logger.info("bands of the embedding by frequency: {}", ", ".join(f"{n:,} tokens of rank {e}" for n, e in bands))
    chosen = msgspec.structs.replace(embedding, rank=0, alpha=0.0, bands=bands)
    return msgspec.structs.replace(config, embedding=chosen)


def _finished(config: ResolvedConfig, run: RunDirectory) -> Outcome:
    """Return the outcome of a run that was resumed after its last update and evaluation."""
    logger.info("the run has made all of its {:,} updates; set more with --steps to continue it", config.steps)
    draw_pictures(config, run, None)
    return Outcome(run, config, config.steps, _scores(run)[config.steps], 0.0)


def _scores(run: RunDirectory) -> dict[int, float]:
    """Return step → validation loss of the evaluations in the metrics file."""
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    return {record["step"]: record["val_loss"] for record in records if "val_loss" in record}


def _is_evaluated(run: RunDirectory, step: int) -> bool:
    """Return True if a step has been evaluated; a stopped run does not wait for long evaluations."""
    return step in _scores(run)


def _train(
    config: ResolvedConfig,
    run: RunDirectory,
    data: Dataset,
    start: Checkpoint | None,
    choice: PrecisionChoice,
    signals: StopSignals | None,
) -> Outcome:
    announce(config, choice)
    compile_kernels_of(config)
    first = start.step if start else 0
    scores = {step: loss for step, loss in _scores(run).items() if step <= first}
    written = WrittenMetrics(config, first, scores)
    base = _base_model(config, start)
    output = CheckpointOutput(
        run.checkpoints,
        data.tokenizer_path,
        written.wait_for,
        data.tokenizer.end_of_text,
        base,
        written.losses,
    )
    source = training_batches(config.data, data, config.batch_sizes, config.seed)
    announce_sequences(source.figures, config.sequences)
    if config.init and start is None:
        logger.info("initial weights: {}", ", ".join(filter(None, (config.init, config.lora.init))))
    initial = _initial_weights(config, start)
    derived = _derived_embedding(config, data)
    validation = validation_windows(config, data, run)
    training = Training(config, source, validation, output, start, initial, data.order, derived, scores)
    logger.info("memory of the run:\n{}", format_memory_plan(planned_memory(config, data.preparation_bytes)))
    trace = new_trace(config, training)
    begin = time.perf_counter()
    with MetricsLog(run.metrics, training.first_batch) as log, Display(config.name) as display:
        reporter = Reporter(config, log, display, begin, source.figures)
        with pictures(config, run, trace):
            graph = training.graph()
            if not _is_evaluated(run, training.first_batch) and (missed := training.evaluate_start()):
                reporter.take_evaluation(missed)
                written.take_evaluation(missed)
            resources = [*training.resources, written]
            control = training.controller(lambda change: logger.info("threads: {}", change))
            with graph.start(resources=resources, trace=trace, label=label, controller=control) as pipeline:
                with _checkpoints_on_request(training, pipeline, written, signals):
                    _follow(pipeline, reporter, written)
            _end_early(training, reporter)
    if config.checkpoint.best:
        _report_best(run, written)
    step = training.banks.statistics().newest
    return Outcome(run, config, step, written.losses().get(step), time.perf_counter() - begin, _stopped(training))


def _end_early(training: Training, reporter: Reporter) -> None:
    """Write the checkpoint of a run that has stopped early, unless there is one."""
    if stopped := _stopped(training):
        if saved := training.save_newest():
            reporter.take_saved(saved)
        logger.info("stopped: {}", stopped)


def _stopped(training: Training) -> str | None:
    """Return why a run has ended before its last update; None if it has not."""
    early = training.banks.statistics().newest < training.config.steps
    return training.stopping.reason if training.stopping and early else None


def _report_best(run: RunDirectory, written: WrittenMetrics) -> None:
    """Log the checkpoint with the lowest validation loss."""
    losses = written.losses()
    best = Retention(losses=losses).best(run.checkpoint_steps())
    if best is not None:
        logger.info("best checkpoint: {}, validation loss {:.4f}", run.checkpoint(best), losses[best])


def _derived_embedding(config: ResolvedConfig, data: Dataset) -> DerivedEmbedding | None:
    """Return the function from factors to the token embedding of a run that trains factors."""
    if not config.embedding.derived:
        return None
    config.embedding.require_bands(config.model.vocab_size)
    return derived_embedding(config.embedding, vocabulary_facts(data, config.model.vocab_size))


def _initial_weights(config: ResolvedConfig, start: Checkpoint | None) -> InitialWeights | None:
    """Return the weights that a run starts from, of which a checkpoint lacks a frozen model; None for random ones."""
    if start:
        return FolderWeights(start.base_folder, config.geometry()) if start.base_folder else None
    if not config.init:
        return None
    model = FolderWeights(Path(config.init), config.geometry())
    return AdaptedWeights(model, Path(config.lora.init), config.geometry()) if config.lora.init else model


def _base_model(config: ResolvedConfig, start: Checkpoint | None) -> BaseModel | None:
    """Return the frozen model of a run with adapters, whose files are hashed once; None for another run."""
    if not config.lora.rank:
        return None
    return start.base if start else BaseModel.of(Path(config.init))


def _follow(pipeline: Run, reporter: Reporter, written: WrittenMetrics) -> None:
    for event in pipeline:
        reporter.take(event, pipeline.statistics)
        written.take(event)


@contextmanager
def _checkpoints_on_request(
    training: Training, pipeline: Run, written: WrittenMetrics, signals: StopSignals | None
) -> Iterator[None]:
    """Write a checkpoint at SIGUSR1; at a stop signal write one, end the pipeline and raise `Stopped`."""
    if signals is None:
        yield
        return
    with CheckpointRequests(training.save_newest, written.settle, pipeline.cancel) as requests:
        with signals.deferred(requests.stop, requests.save):
            try:
                yield
            except Cancelled:
                if not signals.stopped:
                    raise
