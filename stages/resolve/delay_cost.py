"""The price of a delay in updates, as measured on the recipes of the lab book (docs/performance.md, "Delay")."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DelayCost:
    """What a delay costs in updates."""

    updates: float
    """Updates to the same loss, as a multiple of those without a delay, each with the best settings found for it."""
    loss: float
    """Final loss above that without a delay, after equal updates, in nats per token."""


DELAY_COSTS: Mapping[int, DelayCost] = {0: DelayCost(1.0, 0.0), 1: DelayCost(1.0, 0.0), 2: DelayCost(1.0, 0.0)}
"""Delay → its cost with `delay_correction=forecast_lead`."""
