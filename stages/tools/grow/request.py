"""The arguments of `threadloom grow`, checked."""

import enum
import re
from dataclasses import dataclass
from typing import Self

from threadloom.stages.config import ConfigError
from threadloom.stages.models import Geometry, Growth, Placement

NOISE = 0.02
"""Default standard deviation of the noise, times the factor: that of initial weights, shared among the copies."""
_MAX_FACTOR = 64
_MAX_LAYERS = 1024


class Moments(enum.Enum):
    """The moments of AdamW after the growth."""

    CARRY = "carry"
    """Those of the small model, by the rules that the gradients follow."""
    ZERO = "zero"
    """Zero."""


@dataclass(frozen=True)
class GrowthRequest:
    """A growth that is asked for, and the changes of the run from there on."""

    factor: int
    layers: int
    placement: Placement
    moments: Moments
    noise: float
    """Standard deviation of the noise by which the copies of a matrix differ."""
    seed: int | None
    """None: the seed of the run, 0 for a model without one."""
    rewarm: int | None
    """Updates of the second warm-up. None: chosen by the number of updates that are left."""
    overrides: tuple[str, ...]
    """Changed settings, as in `train --set`."""

    @classmethod
    def of(
        cls,
        width: str,
        depth: str,
        where: str,
        moments: str,
        noise: float | None,
        seed: int | None,
        rewarm: int | None,
        overrides: tuple[str, ...],
    ) -> Self:
        """Return the request of the command's arguments; raises ConfigError."""
        factor, layers = _factor(width), _layers(depth)
        if factor == 1 and layers == 0:
            raise ConfigError(
                "--width, --depth",
                expected="a growth: more width, more layers, or both",
                got="--width 1 --depth 0",
                hint="pass --width 2 or --depth +2",
            )
        deviation = NOISE / factor if noise is None else noise
        return cls(factor, layers, Placement(where), Moments(moments), deviation, seed, rewarm, overrides)

    def growth(self, small: Geometry, seed: int) -> Growth:
        """Return the growth of a model; `seed` is that of its run."""
        chosen = seed if self.seed is None else self.seed
        return Growth(small, self.factor, self.layers, self.placement, self.noise, chosen)

    def __str__(self) -> str:
        parts = [f"width {self.factor}"] if self.factor > 1 else []
        parts += [f"depth +{self.layers} ({self.placement.value})"] if self.layers else []
        parts += [f"noise {self.noise:g}"] if self.factor > 1 else []
        return ", ".join([*parts, f"moments: {self.moments.value}"])


def _factor(text: str) -> int:
    if re.fullmatch(r"\d{1,9}", text) and 1 <= int(text) <= _MAX_FACTOR:
        return int(text)
    raise ConfigError(
        "--width",
        expected=f"an integer from 1 to {_MAX_FACTOR}",
        got=text,
        cause="only whole copies of every channel and head leave the function of the model as it is",
        hint="pass --width 2, which doubles the channels; for another width train a new model",
    )


def _layers(text: str) -> int:
    if re.fullmatch(r"\+?\d{1,9}", text) and int(text) <= _MAX_LAYERS:
        return int(text)
    raise ConfigError(
        "--depth",
        expected=f"the number of layers to insert, from 0 to {_MAX_LAYERS}",
        got=text,
        cause="a model only grows" if text.startswith("-") else None,
        hint="pass --depth +2 for two more layers",
    )
