"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from loguru import logger

from threadloom.stages.console import LogLevel, configure

if TYPE_CHECKING:
    from threadloom.stages.config import Config

STDLIB = "stdlib"
"""The text that stands for the source of Python's own standard library."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="threadloom")
@click.option("--log-level", type=click.Choice([level.value for level in LogLevel]), default="INFO", show_default=True)
def main(log_level: str) -> None:
    """Train small GPT language models on the CPU, as a pipeline of threads.

    \b
    threadloom train --config nanogpt-cpu --text book.txt --out runs/book
    threadloom sample runs/book --prompt "Once upon a time"
    """
    configure(LogLevel(log_level))
    if threading.current_thread() is threading.main_thread():  # the only one that may set handlers, and gets signals
        before = signal.signal(signal.SIGTERM, _terminate)
        click.get_current_context().call_on_close(partial(signal.signal, signal.SIGTERM, before))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `docker stop` and systemd send: everything ends as after Ctrl-C, with another exit status."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def config_options(command: Any) -> Any:
    """Add the options with which a configuration is chosen."""
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE",
            help="Change one setting, such as delay=2, threads.backward=2 or optimizer.lr=3e-4. Repeatable.",
        ),
        click.option("--steps", type=click.IntRange(min=1), help="Optimizer updates; short for --set steps=N."),
        click.option(
            "--config", "config_name", metavar="NAME_OR_FILE",
            help="nanogpt-cpu, shakespeare, small, optimized, large, gpt2, a JSON file, or a run directory.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@config_options
@click.option(
    "--text", "texts", multiple=True, metavar="FILE_OR_DIR",
    help=f"Text to learn from; may be given repeatedly. '{STDLIB}': the source of Python's standard library (default).",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="The run directory.  [required]")
@click.option("--estimate", is_flag=True, help="Only say what memory and time the run would take; no --out needed.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--no-tuned", is_flag=True, help="Leave out what `threadloom tune` found best for this machine.")
@click.option("--sample", "sample_tokens", type=click.IntRange(min=0), default=300, show_default=True,
              help="Tokens to generate when the run is done.")  # fmt: skip
def train(
    config_name: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    texts: tuple[str, ...],
    out: Path | None,
    estimate: bool,
    resume: bool,
    overwrite: bool,
    no_tuned: bool,
    sample_tokens: int,
) -> None:
    """Train a model and write everything about the run to a directory.

    The directory holds config.json, metrics.jsonl, loss.png, timeline.png, trace.json (open it in ui.perfetto.dev) and
    checkpoints/, whose models `transformers` opens as they are. Ctrl-C stops; --resume goes on from the last
    checkpoint, on exactly the trajectory of a run that was never interrupted.
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on with a run and --overwrite replaces it: give one of them")
    if resume and config_name:
        raise click.UsageError("--resume takes the run's own configuration: leave out --config (--set is allowed)")
    if out is None and (resume or not estimate):
        raise click.MissingParameter(param_hint="'--out'", param_type="option")
    if estimate:
        with explained():
            from threadloom.stages.run import estimate_run, estimate_text

            planned = _changed(_begun(out) if out and resume else _load(config_name), overrides, steps, texts)
            click.echo(estimate_text(estimate_run(planned, tuned=not no_tuned)))
        return
    assert out is not None
    with explained(partial(_left_by, out)):
        from threadloom.stages.run import train
        from threadloom.stages.storage import RunMode

        config = _changed(_begun(out) if resume else _load(config_name), overrides, steps, texts)
        mode = RunMode.RESUME if resume else RunMode.OVERWRITE if overwrite else RunMode.NEW
        outcome = train(config, out, mode, tuned=not no_tuned)
        if outcome.val_loss is not None:
            click.echo(
                f"validation loss {outcome.val_loss:.4f} after {outcome.step:,} updates, {outcome.seconds:.1f} s"
            )
        if sample_tokens:
            click.echo("")
            _sample(out, None, sample_tokens, 0.8, 40, 1.0, config.seed)
        click.echo(f"run directory: {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="The text to go on from.  [default: the beginning of a line]")
@click.option("--tokens", type=click.IntRange(min=0), default=500, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="Below 1 safer, 0 greedy.")
@click.option("--top-k", type=click.IntRange(min=1), default=None, help="Choose among the K likeliest tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest that sum to P.")
@click.option("--seed", type=click.IntRange(min=0), default=1337, show_default=True, help="Same seed, same text.")
def sample(
    run: Path, prompt: str | None, tokens: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Generate text with the newest model of a RUN directory, or a checkpoint or GPT-2 folder."""
    with explained():
        begin = time.perf_counter()
        _sample(run, prompt, tokens, temperature, top_k, top_p, seed)
        logger.debug("{} tokens in {:.2f} s", tokens, time.perf_counter() - begin)


@main.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="Text to evaluate on.")
def evaluate(run: Path, texts: tuple[str, ...]) -> None:
    """Compute loss, perplexity and bits per character of the newest model of a RUN directory.

    Without --text, on all of the validation part of the text that the run was trained on. (What `train` reports is of
    some windows of that part, evaluation.final_batches of them at its end.)
    """
    with explained():
        from threadloom.stages.inference import evaluate_text

        score = evaluate_text(run, tuple(texts))
        click.echo(
            f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}, "
            f"{score.bits_per_character:.4f} bits per character ({score.tokens:,} tokens, {score.seconds:.1f} s)"
        )


@main.command()
@config_options
@click.option("--budget", type=float, default=60.0, show_default=True, help="Seconds that the trials may take.")
def tune(config_name: str | None, overrides: tuple[str, ...], steps: int | None, budget: float) -> None:
    """Find the fastest threads, micro-batch and channel sizes for this machine by short measured runs.

    The choice is kept for this machine and model, and `train` uses it from then on.
    """
    with explained():
        from threadloom.stages.tools.tune import run_tuning

        run_tuning(_changed(_load(config_name), overrides, steps, ()), budget)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--no-measure", is_flag=True, help="Leave the measurements out.")
def doctor(as_json: bool, no_measure: bool) -> None:
    """Show what this machine has, measure it, and say what will be used because of that."""
    with explained():
        import msgspec
        from rich.console import Console

        from threadloom.stages.tools.doctor import DoctorView, doctor_dict, examine

        report = examine(measure=not no_measure)
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(doctor_dict(report)), indent=2).decode())
        else:
            Console().print(DoctorView(report))


@main.command()
@click.option("--config", "names", multiple=True, metavar="NAME_OR_FILE",
              help="Configurations to measure; repeatable. Default: nanogpt-cpu, small and optimized.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting of each. Repeatable.")
@click.option("--seconds", type=click.FloatRange(min=0.0), default=5.0, show_default=True,
              help="Seconds for each way to train, and for the kernels, of each configuration.")  # fmt: skip
@click.option("--cold", is_flag=True, help="Also start with no kernel compiled, which takes half a minute.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write all as JSON.")
def bench(
    names: tuple[str, ...], overrides: tuple[str, ...], seconds: float, cold: bool, json_file: Path | None
) -> None:
    """Measure how fast training is here, and how far from what the machine could do.

    Checks the results first. Then, for each configuration: tokens per second of one thread, of one stage after another,
    and of the pipeline at each delay; every stage; every kernel beside its roofline; memory beside the plan; start-up.
    """
    with explained():
        from rich.console import Console

        from threadloom.stages.console import WorkerError
        from threadloom.stages.tools.bench import BenchCheckFailed, BenchView, run_bench, write_json

        wanted = [_changed(_load(name), overrides, None, ()) for name in names or ("nanogpt-cpu", "small", "optimized")]
        try:
            report = run_bench(wanted, seconds, cold, logger.info)
        except (BenchCheckFailed, WorkerError) as error:
            raise click.ClickException(str(error)) from error
        terminal = Console()
        (terminal if terminal.is_terminal else Console(width=180)).print(BenchView(report), highlight=False)
        if json_file is not None:
            write_json(report, json_file)
            click.echo(f"written to {json_file}")


@contextmanager
def explained(left: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors that a person can mend into one message and exit status 1; Ctrl-C into status 130, SIGTERM into 143.

    `left`: says, of what was interrupted, what is left of it.
    """
    from threadloom.pipeline import StageFailure
    from threadloom.stages.config import InputError

    try:
        yield
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        logger.warning("stopped by {}{}", "SIGTERM" if terminated else "Ctrl-C", left())
        sys.exit(143 if terminated else 130)
    except BrokenPipeError:  # who read our output, `head` perhaps, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at its end
        sys.exit(1)
    except StageFailure as failure:
        cause = failure.__cause__
        logger.opt(exception=cause).debug("where it happened")
        where = f"stage {failure.stage!r}, {failure.item}"
        logger.error("{}: {} [{}]", type(cause).__name__, cause, where)
        sys.exit(1)
    except (InputError, OSError) as error:
        logger.opt(exception=error).debug("where it happened")
        logger.error("{}", error)
        sys.exit(1)


def _left_by(out: Path) -> str:
    from threadloom.stages.storage import RunDirectory

    steps = RunDirectory(out).checkpoint_steps()
    if not steps:
        return "; there is no checkpoint yet"
    return f"; the last checkpoint is that of step {steps[-1]:,} (train --resume goes on from there)"


def _begun(out: Path) -> "Config":
    from threadloom.stages.run import saved_config

    return saved_config(out)


def _load(name: str | None) -> "Config":
    from threadloom.stages.resolve import load_config

    return load_config(name or "nanogpt-cpu")


def _changed(config: "Config", overrides: tuple[str, ...], steps: int | None, texts: tuple[str, ...]) -> "Config":
    import msgspec

    from threadloom.stages.resolve import apply_overrides, validate

    if steps is not None:
        overrides = (*overrides, f"steps={steps}")
    config = apply_overrides(config, overrides)
    if texts:
        named = tuple(text for text in texts if text != STDLIB)
        data = msgspec.structs.replace(config.data, text=named)
        config = msgspec.structs.replace(config, data=data)
    validate(config)
    return config


def _sample(
    run: Path, prompt: str | None, tokens: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    from threadloom.stages.inference import Model, SamplingSettings, generate

    model = Model.open(run)
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    prompt_ids = model.default_prompt() if prompt is None else model.tokenizer.encode(prompt)
    said = prompt or model.tokenizer.decode(prompt_ids)
    click.echo(said if said.strip() else "", nl=False)
    ids: list[int] = []
    shown = ""
    try:
        for token in generate(model.weights, model.geometry, prompt_ids, tokens, settings, seed):
            ids.append(token)
            text = model.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # a character may be spread over several tokens
                click.echo(text[len(shown) :], nl=False)
                shown = text
    except KeyboardInterrupt:
        click.echo("")
        raise
    click.echo(model.tokenizer.decode(ids)[len(shown) :] if ids else "")
