"""The log lines at the start of a run: the machine, the model, the chosen settings and the training sequences."""

from dataclasses import replace

import msgspec
from loguru import logger

from threadloom.kernels import blas_info
from threadloom.pipeline import available_cores
from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.data import SequenceFigures
from threadloom.stages.machine import detect
from threadloom.stages.memory import format_lanes
from threadloom.stages.models import parameter_count, parameter_shapes
from threadloom.stages.resolve import PrecisionChoice, delay_summary, delay_warning, gemm_description, stage_threads
from threadloom.stages.run.display import format_count


def announce(config: ResolvedConfig, choice: PrecisionChoice) -> None:
    """Log the detected machine and the chosen settings."""
    blas = blas_info(load=False)
    geometry = config.geometry()
    width = detect().vector_width
    product = gemm_description(config.precision)
    logger.info("processor: {} cores, {}; GEMM by {}", available_cores(), width.value, product)
    if config.precision in (Precision.FLOAT32, Precision.FP16):
        logger.debug("GEMM: {}", blas.reason)
    limit = stage_threads(config)
    logger.info("threads: {}, by {}", limit.count, limit.reason)
    logger.info("precision: {}; {}", config.precision.value, choice.reason)
    if choice.warning:
        logger.warning("{}", choice.warning)
    threads = {f"threads.{name}": count for name, count in msgspec.structs.asdict(config.threads).items()}
    if many := [f"{name}={count}" for name, count in threads.items() if count > 4 * available_cores()]:
        logger.warning(
            "{} on {} cores: more threads than cores slow each other down", ", ".join(many), available_cores()
        )
    logger.info(
        "model: {:,} parameters; batches of {} x {} tokens in micro-batches of {}, {}, delay {}",
        parameter_count(replace(geometry, lora=None)), config.sequences, geometry.context, config.micro_batch,
        format_lanes(config), config.delay,
    )  # fmt: skip
    if config.delay:
        logger.info("{}", delay_summary(config))
    if warning := delay_warning(config):
        logger.warning("{}", warning)
    if frozen := config.frozen_tensors():
        trained = parameter_shapes(geometry, frozen)
        adapters = f" in adapters of rank {geometry.lora.rank}" if geometry.lora else ""
        logger.info(
            "trained: {:,} parameters{} of {} tensors, {}; {} are frozen",
            parameter_count(geometry, frozen), adapters, len(trained), ", ".join(trained), len(frozen),
        )  # fmt: skip


def announce_sequences(figures: SequenceFigures, per_update: int) -> None:
    """Log the length of an epoch and the padding of training sequences, if they have them."""
    parts = []
    if len(figures.epochs) == 1:
        [count] = figures.epochs
        parts.append(f"{count:,} in an epoch, which is {format_count(count / per_update)} updates")
    elif figures.epochs:
        parts.append(f"{', '.join(f'{count:,}' for count in figures.epochs)} in an epoch of each source")
    if figures.padding is not None:
        parts.append(f"{figures.padding:.1%} of the rows are padding")
    if parts:
        logger.info("training sequences: {}", "; ".join(parts))
