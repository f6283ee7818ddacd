"""A small model that grows, against the large one from the start: `python -m benchmarks.crystalline_grow`.

Each plan trains a model with half of the channels or of the layers for a share of the training, grows it to the model
of the recipe, and trains on. It is compared twice with the recipe itself, with the same seed and data:

- equal updates: the updates of both phases together are those of the recipe, so the plan takes less time;
- equal seconds: the small model trains for a share of the recipe's seconds and the large one for the rest, at the
  speeds of the run with equal updates, so the plan has more updates.

The learning rate decays to its end at the last update of each plan. Seconds are those of the training with its
evaluations, without the compilation of kernels and without the seconds of `grow`, which are reported.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.convergence import TINYSHAKESPEARE
from threadloom.stages.config import Config, ConfigError, InputError
from threadloom.stages.console import configure
from threadloom.stages.resolve import apply_overrides, load_config
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import RunDirectory, RunMode, read_metrics
from threadloom.stages.tools.grow import grow

LARGE, UPDATES, SECONDS = "from the start", "updates", "seconds"
EVALUATION = ("evaluation.interval=50", "evaluation.batches=25", "evaluation.final_batches=150")
"""Frequent, short evaluations, from which the time to a loss is interpolated, and a long one at the end."""


@dataclass(frozen=True)
class Plan:
    """A way to train the model of the recipe."""

    name: str
    overrides: tuple[str, ...] = ()
    """Settings of the small model; empty: the model of the recipe, from the start."""
    width: int = 1
    depth: int = 0
    share: float = 0.0
    """Share of the training, by updates or seconds, with the small model."""


@dataclass(frozen=True)
class Curve:
    """Seconds and validation losses of a training, in the order of time."""

    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    total: float
    """Seconds of the whole training."""

    def time_to(self, loss: float) -> float | None:
        """Return the seconds until a validation loss, interpolated between evaluations; None if not reached."""
        before: tuple[float, float] | None = None
        for now, found in zip(self.seconds, self.losses, strict=True):
            if found <= loss:
                if before is None:
                    return now
                part = (before[1] - loss) / (before[1] - found)
                return before[0] + part * (now - before[0])
            before = now, found
        return None

    def then(self, other: "Curve") -> "Curve":
        """Return the curve of one training that `other` continues."""
        later = tuple(self.total + now for now in other.seconds)
        return Curve(self.seconds + later, self.losses + other.losses, self.total + other.total)


@dataclass(frozen=True)
class Trained:
    """The result of one plan with one seed; written to the file of results."""

    plan: str
    equal: str
    seed: int
    small_updates: int
    large_updates: int
    seconds: float
    small_seconds: float
    grow_seconds: float
    final: float
    """Validation loss at the end."""
    times: dict[str, float | None]
    """Validation loss → seconds until it."""

    @property
    def large_seconds_per_update(self) -> float:
        """Seconds of one update of the large model, evaluations included."""
        return (self.seconds - self.small_seconds) / self.large_updates

    @property
    def small_seconds_per_update(self) -> float:
        """Seconds of one update of the small model, evaluations included."""
        return self.small_seconds / self.small_updates


def plans(config: Config, shares: Sequence[float]) -> list[Plan]:
    """Return the plans for a recipe: from the start, half the width, half the depth. Raises ConfigError."""
    model = config.model
    if model.channels % 2 or model.heads % 2 or model.layers % 2:
        raise ConfigError(
            "model",
            expected="an even number of channels, heads and layers, of which the small models have half",
            got=f"{model.channels} channels, {model.heads} heads, {model.layers} layers",
            hint="--set model.layers=4, for example",
        )
    narrow = (f"model.channels={model.channels // 2}", f"model.heads={model.heads // 2}")
    shallow, found = (f"model.layers={model.layers // 2}",), [Plan(LARGE)]
    for share in shares:
        found.append(Plan(f"width × 2 after {share:.0%}", narrow, width=2, share=share))
        found.append(Plan(f"depth × 2 after {share:.0%}", shallow, depth=model.layers // 2, share=share))
    return found


@dataclass(frozen=True)
class Benchmark:
    """The recipe, and where its runs are written."""

    config: Config
    out: Path
    losses: tuple[float, ...]
    moments: str = "carry"
    rewarm: int | None = None
    rate: float = 1.0
    """Factor of the learning rate from the growth on."""

    def run(self, seeds: Sequence[int], shares: Sequence[float]) -> list[Trained]:
        """Train every plan with every seed; results so far are in results.json after each run."""
        done: list[Trained] = []
        for seed in seeds:
            scratch: Trained | None = None
            for plan in plans(self.config, shares):
                updates = self.config.steps
                equal = self.train(plan, UPDATES, seed, round(plan.share * updates), updates)
                done.append(equal)
                scratch = scratch or equal
                if plan.share:
                    budget = scratch.seconds
                    small = max(1, round(plan.share * budget / equal.small_seconds_per_update))
                    large = max(1, round((1 - plan.share) * budget / equal.large_seconds_per_update))
                    done.append(self.train(plan, SECONDS, seed, small, small + large))
                write_results(self, done)
        return done

    def train(self, plan: Plan, equal: str, seed: int, small: int, updates: int) -> Trained:
        """Train `small` updates of the small model of a plan and the rest of the large one."""
        name = "".join(character if character.isalnum() else "-" for character in f"{plan.name} {equal} {seed}")
        common = (f"seed={seed}", f"steps={updates}", f"schedule.decay_steps={updates}", *EVALUATION)
        config = apply_overrides(self.config, (*common, "checkpoint.interval=0", "pictures=false"))
        if not plan.share:
            outcome = train(config, self.out / name, RunMode.OVERWRITE, tuned=False)
            curve = _curve(outcome.run)
            return self._trained(plan, equal, seed, 0, updates, curve, 0.0, 0.0)
        first = self.out / f"{name}-small"
        train(apply_overrides(config, (*plan.overrides, f"steps={small}")), first, RunMode.OVERWRITE, tuned=False)
        begin, second = time.perf_counter(), self.out / f"{name}-large"
        _remove(second)
        self._grow(plan, first, second, updates)
        seconds = time.perf_counter() - begin
        outcome = train(saved_config(second), second, RunMode.RESUME, tuned=False)
        before = _curve(RunDirectory(first))
        curve = before.then(_curve(outcome.run))
        return self._trained(plan, equal, seed, small, updates, curve, before.total, seconds)

    def _grow(self, plan: Plan, first: Path, second: Path, updates: int) -> None:
        """Run `threadloom grow`."""
        arguments = [str(first), "--out", str(second), "--width", str(plan.width), "--depth", str(plan.depth)]
        arguments += ["--where", "even", "--moments", self.moments]
        if self.rewarm is not None:
            arguments += ["--rewarm", str(self.rewarm)]
        for change in self._changes(updates):
            arguments += ["--set", change]
        grow.main(arguments, standalone_mode=False)

    def _changes(self, updates: int) -> tuple[str, ...]:
        rate, least = self.config.optimizer.lr, self.config.schedule.min_lr
        if self.rate == 1.0 or rate is None:
            return (f"steps={updates}",)
        return (
            f"steps={updates}", f"optimizer.lr={rate * self.rate}", f"schedule.min_lr={least * self.rate}",
        )  # fmt: skip

    def _trained(
        self, plan: Plan, equal: str, seed: int, small: int, updates: int, curve: Curve, before: float, grow: float
    ) -> Trained:
        times = {f"{loss:g}": curve.time_to(loss) for loss in self.losses}
        final = curve.losses[-1]
        return Trained(plan.name, equal, seed, small, updates - small, curve.total, before, grow, final, times)


def _remove(run: Path) -> None:
    """Remove the run of an earlier benchmark, and no other directory."""
    if RunDirectory(run).holds_run():
        shutil.rmtree(run)


def _curve(run: RunDirectory) -> Curve:
    """Return the curve of a run from its metrics; the evaluation after an update counts at the time of that update."""
    records = read_metrics(run.metrics)
    at = {record["step"]: float(record["seconds"]) for record in records if "seconds" in record}
    scored = [(at.get(record["step"], 0.0), float(record["val_loss"])) for record in records if "val_loss" in record]
    seconds, losses = zip(*scored, strict=True) if scored else ((), ())
    return Curve(seconds, losses, max(at.values()))


def write_results(benchmark: Benchmark, done: Sequence[Trained]) -> Path:
    """Write results.json, and return its path."""
    path, settings = benchmark.out / "results.json", msgspec.to_builtins(benchmark.config)
    options = {"moments": benchmark.moments, "rewarm": benchmark.rewarm, "rate": benchmark.rate}
    content = {"config": settings, "growth": options, "runs": [asdict(trained) for trained in done]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def table(done: Sequence[Trained], losses: Sequence[float]) -> Table:
    """Return the means over seeds, each with its difference from the recipe of the same seed."""
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    headings = ("plan", "equal", "updates", "seconds", "final loss", "minus recipe", *(f"s to {x:g}" for x in losses))
    for heading in headings:
        found.add_column(heading, justify="left" if heading in ("plan", "equal") else "right")
    recipe = {trained.seed: trained for trained in done if trained.plan == LARGE}
    for name, equal in dict.fromkeys((trained.plan, trained.equal) for trained in done):
        runs = [trained for trained in done if (trained.plan, trained.equal) == (name, equal)]
        away = [run.final - recipe[run.seed].final for run in runs]
        error = f" ± {stdev(away) / math.sqrt(len(away)):.4f}" if len(away) > 1 else ""
        found.add_row(
            name, "" if name == LARGE else equal,
            f"{mean(run.small_updates for run in runs):,.0f} + {mean(run.large_updates for run in runs):,.0f}",
            f"{mean(run.seconds for run in runs):.1f}", f"{mean(run.final for run in runs):.4f}",
            "" if name == LARGE else f"{mean(away):+.4f}{error}",
            *(_mean_time([run.times[f"{loss:g}"] for run in runs]) for loss in losses),
        )  # fmt: skip
    return found


def _mean_time(times: Sequence[float | None]) -> str:
    """Return the mean of the times of the runs that reached a loss, and how many did if not all."""
    reached = [seconds for seconds in times if seconds is not None]
    if not reached:
        return "never"
    return f"{mean(reached):.1f}" + (f" ({len(reached)} of {len(times)})" if len(reached) < len(times) else "")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, metavar="NAME_OR_FILE")
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Default: ../shared/data/tinyshakespeare.txt if present, else the source of Python.")  # fmt: skip
@click.option("--seeds", default="1337,1,2", show_default=True)
@click.option("--shares", default="0.25,0.5", show_default=True, help="Shares of the training with the small model.")
@click.option("--losses", default="2.0,1.9", show_default=True, help="Validation losses to which the time is taken.")
@click.option("--moments", type=click.Choice(["carry", "zero"]), default="carry", show_default=True)
@click.option("--rewarm", type=click.IntRange(min=0), help="As for threadloom grow.")
@click.option("--rate", type=float, default=1.0, show_default=True, help="Factor of the rate from the growth on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, as for train.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/crystalline-grow"), show_default=True)
def main(
    name: str, texts: tuple[str, ...], seeds: str, shares: str, losses: str, moments: str, rewarm: int | None,
    rate: float, overrides: tuple[str, ...], out: Path,
) -> None:  # fmt: skip
    """Compare trainings that grow with trainings of the large model, and write results.json."""
    configure()
    if not texts and TINYSHAKESPEARE.exists():
        texts = (str(TINYSHAKESPEARE),)
    try:
        config = apply_overrides(load_config(name), overrides)
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=texts))
        wanted = tuple(map(float, losses.split(",")))
        benchmark = Benchmark(config, out, wanted, moments, rewarm, rate)
        done = benchmark.run([int(seed) for seed in seeds.split(",")], [float(share) for share in shares.split(",")])
    except (InputError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    Console(width=150).print(table(done, wanted))
    click.echo(f"results: {write_results(benchmark, done)}")


if __name__ == "__main__":
    main()
