"""Shared by the tests of trajectories: results of sequential replays, computed once per trajectory."""

from tests.stages.support import Result, build, result, run_sequence
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.resolve import trajectory

_REPLAYS: dict[str, Result] = {}


def replayed(config: ResolvedConfig) -> Result:
    """Return the result of the replay, with evaluations; threads and sizes do not affect it, so they share it."""
    key = f"{trajectory(config)} {config.steps} {config.evaluation}"
    if key not in _REPLAYS:
        training = build(config, evaluate=True)
        _REPLAYS[key] = result(training, run_sequence(training))
    return _REPLAYS[key]
