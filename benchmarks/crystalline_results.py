"""The file of results of `benchmarks.crystalline`: one JSON line for each training and each measured speed."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Self

import msgspec

from benchmarks.crystalline_rows import BASELINE, Variant


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One training."""

    config: str
    variant: str
    settings: tuple[str, ...]
    precision: str
    seed: int
    steps: int
    loss: float
    """Final validation loss, in nats per token."""
    tokens_per_s: float
    """Of the training itself; not a measured speed unless it ran alone."""
    text: tuple[str, ...]
    by_frequency: tuple[float | None, ...] = ()
    """Loss of each class of `benchmarks.crystalline_frequency`; empty in files of before."""


class Speed(msgspec.Struct, frozen=True):
    """The speed of a variant next to the plain one."""

    config: str
    variant: str
    settings: tuple[str, ...]
    precision: str
    pairs: tuple[tuple[float, float], ...]
    """Tokens per second of the plain training and of the variant's, round by round."""

    @property
    def ratios(self) -> list[float]:
        """The variant's speed divided by the plain one's, round by round."""
        return [variant / plain for plain, variant in self.pairs]

    @property
    def median(self) -> float:
        """The median ratio."""
        return median(self.ratios)


@dataclass(frozen=True)
class Difference:
    """The loss of a variant minus that of the plain training with the same seed."""

    mean: float
    error: float
    """Standard error of the mean; NaN for one seed."""
    seeds: int


@dataclass
class Results:
    """All results of a file, which `add` and `add_speed` append to."""

    path: Path
    trainings: list[Result] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the file, if there is one."""
        found = cls(path)
        for line in path.read_text().splitlines() if path.exists() else []:
            record = json.loads(line)
            if "pairs" in record:
                found.speeds.append(msgspec.convert(record, Speed))
            else:
                found.trainings.append(msgspec.convert(record, Result))
        return found

    def add(self, result: Result) -> None:
        """Append a training."""
        self.trainings.append(result)
        self._write(result)

    def add_speed(self, speed: Speed) -> None:
        """Append a measured speed."""
        self.speeds.append(speed)
        self._write(speed)

    def _write(self, record: Result | Speed) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")

    def losses(self, config: str, variant: Variant, precision: str, steps: int | None) -> dict[int, float]:
        """Return seed → loss of a variant; `steps` None: for the updates of the plain training."""
        wanted = self.updates(config, precision) if steps is None else steps
        key = (config, variant.name, variant.settings, precision, wanted)
        return {
            result.seed: result.loss
            for result in self.trainings
            if (result.config, result.variant, result.settings, result.precision, result.steps) == key
        }

    def by_frequency(self, config: str, variant: Variant, precision: str) -> dict[int, tuple[float | None, ...]]:
        """Return seed → losses by frequency, of as many updates as the plain training has; without unknown ones."""
        key = (config, variant.name, variant.settings, precision, self.updates(config, precision))
        return {
            result.seed: result.by_frequency
            for result in self.trainings
            if (result.config, result.variant, result.settings, result.precision, result.steps) == key
            and result.by_frequency
        }

    def require_text(self, config: str, text: tuple[str, ...]) -> None:
        """Raise ValueError if the file has trainings of a configuration on another text."""
        others = {result.text for result in self.trainings if result.config == config} - {text}
        if others:
            found = ", ".join(next(iter(others))) or "the source of Python"
            raise ValueError(f"{self.path} has trainings of {config} on {found}; pass that --text, or other --results")

    def updates(self, config: str, precision: str) -> int | None:
        """Return the updates of the plain training; None if there is none."""
        return max(
            (r.steps for r in self.trainings if (r.config, r.variant, r.precision) == (config, BASELINE, precision)),
            default=None,
        )

    def has(self, config: str, variant: Variant, precision: str, seed: int, steps: int | None) -> bool:
        """Return True if a training is in the file."""
        return seed in self.losses(config, variant, precision, steps)

    def ratio(self, config: str, variant: Variant, precision: str) -> float | None:
        """Return the median speed relative to the plain training; None if it was not measured."""
        speed = self.speed(config, variant, precision)
        return speed.median if speed else None

    def speed(self, config: str, variant: Variant, precision: str) -> Speed | None:
        """Return the newest measurement of a variant's speed."""
        key = (config, variant.name, variant.settings, precision)
        found = [s for s in self.speeds if (s.config, s.variant, s.settings, s.precision) == key]
        return found[-1] if found else None

    def difference(self, config: str, variant: Variant, precision: str, steps: int | None = None) -> Difference | None:
        """Return the difference of loss over the seeds that both trainings have; None if there are none."""
        plain = self.losses(config, Variant(BASELINE), precision, None)
        own = self.losses(config, variant, precision, steps)
        away = [own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())]
        if not away:
            return None
        error = stdev(away) / math.sqrt(len(away)) if len(away) > 1 else math.nan
        return Difference(mean(away), error, len(away))
