"""The command `threadloom train`."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from loguru import logger

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import (
    STDLIB,
    Seconds,
    changed_config,
    config_options,
    named_config,
    reported_errors,
    stop_signals,
    tokenizer_option,
    with_prepared,
    with_tokenizer,
)

if TYPE_CHECKING:
    from threadloom.stages.config import Config
    from threadloom.stages.run import Outcome
    from threadloom.stages.storage import RunMode


@click.command("train")
@config_options
@click.option(
    "--text", "texts", multiple=True, metavar="FILE_OR_DIR",
    help="Text to train on: a file, folder or pattern of text, JSON Lines, Parquet, Arrow or token ids; - is standard "
    f"input. Repeatable. '{STDLIB}' is the source of Python's standard library (default).",
)  # fmt: skip
@click.option(
    "--data", "prepared", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Train on the text that `threadloom prepare` has prepared in this folder, with its tokenizer and settings.",
)  # fmt: skip
@tokenizer_option
@click.option(
    "--init", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Start from the weights, sizes and tokenizer of a model in Hugging Face's layout, of a run, or of adapters.",
)  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), metavar="FOLDER",
    help="With --init FOLDER of adapters, or --resume: the model that they belong to, if it has been moved.",
)  # fmt: skip
@click.option(
    "--lora", "rank", type=click.IntRange(min=1), metavar="RANK",
    help="With --init: freeze the model and train low-rank adapters of its linear layers. 8 to 64 are usual.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="The run directory.  [required]")
@click.option("--estimate", is_flag=True, help="Print estimated memory and time, then exit; needs no --out.")
@click.option("--resume", is_flag=True, help="Resume the run in --out from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--force", is_flag=True, help="Start a run that does not fit into the available memory.")
@click.option("--no-tuned", is_flag=True, help="Ignore the settings that `threadloom tune` found for this machine.")
@click.option("--sample", "sample_tokens", type=click.IntRange(min=0), default=300, show_default=True,
              help="Tokens to generate after the training.")  # fmt: skip
@click.option("--time-limit", type=Seconds(), metavar="TIME",
              help="Stop after this time, as SIGTERM does: seconds, or such as 90m, 2h, 1:30:00.")  # fmt: skip
def train_command(
    *,
    config_name: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    texts: tuple[str, ...],
    prepared: Path | None,
    tokenizer: Path | None,
    init: Path | None,
    base: Path | None,
    rank: int | None,
    out: Path | None,
    estimate: bool,
    resume: bool,
    overwrite: bool,
    force: bool,
    no_tuned: bool,
    sample_tokens: int,
    time_limit: float | None,
) -> None:
    """Train a model and write the run to a directory.

    The directory gets config.json, metrics.jsonl, loss.png, timeline.png, trace.json (open it in ui.perfetto.dev) and
    checkpoints/, whose models `transformers` can open. Ctrl-C, SIGTERM, SIGHUP and --time-limit write a checkpoint and
    stop the run; after SIGUSR1 it continues. --resume continues a run from its last checkpoint, on exactly the
    trajectory of a run that was not interrupted.

    --init fine-tunes a model: with --config its settings are used, otherwise those for fine-tuning. --lora RANK trains
    adapters (LoRA) instead of all weights, which takes a fraction of the memory; the settings lora.* change them.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if resume and config_name:
        raise click.UsageError("--resume uses the configuration of the run: omit --config (--set is allowed)")
    if resume and init is not None:
        raise click.UsageError("--resume continues from the weights of the run: omit --init")
    if base is not None and init is None and not resume:
        raise click.UsageError("--base is the model of the adapters in --init")
    if resume and rank is not None:
        raise click.UsageError("--resume trains what the run trains: omit --lora")
    if prepared is not None and (texts or tokenizer is not None or resume):
        raise click.UsageError("--data is a prepared text with its tokenizer: omit --text, --tokenizer and --resume")
    if out is None and (resume or not estimate):
        raise click.MissingParameter(param_hint="'--out'", param_type="option")

    def config() -> "Config":
        if out is not None and resume:
            start = _resumed_config(out)
        else:
            start = _starting_config(config_name, init, base, rank)
        return changed_config(with_prepared(with_tokenizer(start, tokenizer), prepared), overrides, steps, texts)

    if estimate:
        with reported_errors():
            from threadloom.stages.run import estimate_run, estimate_text

            write_output(estimate_text(estimate_run(config(), tuned=not no_tuned)))
        return
    assert out is not None
    if time_limit is not None and (signals := stop_signals()):
        signals.limit_time(time_limit)
    with reported_errors(partial(_last_checkpoint, out)):
        from threadloom.stages.storage import RunMode

        mode = RunMode.RESUME if resume else RunMode.OVERWRITE if overwrite else RunMode.NEW
        _train(
            config(),
            out,
            mode,
            tuned=not no_tuned,
            force=force,
            sample_tokens=sample_tokens,
            base=base if resume else None,
        )


def _starting_config(name: str | None, init: Path | None, base: Path | None, rank: int | None) -> "Config":
    """Return the named configuration, or that for fine-tuning the model in `init`, with adapters of a rank."""
    config = named_config(name) if init is None else _fine_tuning(name, init, base)
    if rank is None:
        return config
    from threadloom.stages.resolve import with_adapters

    return with_adapters(config, rank, own_rate=name is None)


def _fine_tuning(name: str | None, init: Path, base: Path | None) -> "Config":
    from threadloom.stages.resolve import fine_tuning_config, with_initial_model

    if name is None:
        return fine_tuning_config(init, base)
    return with_initial_model(named_config(name), init, base)


def _resumed_config(out: Path) -> "Config":
    """Return the configuration of the run in `out`, with thread counts that are chosen for this process."""
    from threadloom.stages.machine import thread_limit
    from threadloom.stages.resolve import with_threads_of_this_process
    from threadloom.stages.run import saved_config

    return with_threads_of_this_process(saved_config(out), thread_limit())


def _train(
    config: "Config", out: Path, mode: "RunMode", *, tuned: bool, force: bool, sample_tokens: int, base: Path | None
) -> None:
    from threadloom.stages.run import train

    outcome = train(config, out, mode, tuned=tuned, force=force, signals=stop_signals(), base=base)
    try:
        _print_outcome(outcome, out, sample_tokens, config.seed, base)
    except BrokenPipeError:  # the reader of the output has exited; the run is complete
        pass
    except Exception as error:
        logger.opt(exception=error).debug("traceback")
        logger.warning("the run is complete, but its result was not printed: {}", error)


def _print_outcome(outcome: "Outcome", out: Path, sample_tokens: int, seed: int, base: Path | None) -> None:
    from threadloom.stages.inference import GenerationLimits, SamplingSettings
    from threadloom.stages.tools.sample import print_sample

    if outcome.val_loss is not None:
        write_output(f"validation loss {outcome.val_loss:.4f} after {outcome.step:,} updates, {outcome.seconds:.1f} s")
    if outcome.stopped is not None:
        write_output(f"stopped early: {outcome.stopped}")
    try:
        if sample_tokens:
            write_output()
            settings = SamplingSettings(temperature=0.8, top_k=40)
            print_sample(out, None, settings, GenerationLimits(sample_tokens), seed, base=base)
    finally:
        write_output(f"run directory: {out}")


def _last_checkpoint(out: Path) -> str:
    """Return the text on the checkpoints of a stopped run."""
    from threadloom.stages.storage import RunDirectory

    steps = RunDirectory(out).checkpoint_steps()
    if not steps:
        return "; there is no checkpoint yet"
    resume = f"threadloom train --resume --out {shlex.quote(str(out))}"
    return f"; the last checkpoint is that of step {steps[-1]:,}; to continue: {resume}"
