"""Whole updates of the threaded training, compared with the float64 reference with the declared staleness."""

import pytest

from tests.kernels.comparison import distance
from tests.stages.support import build, run_threads, tiny
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation, random_weights, start_from

pytestmark = pytest.mark.timeout(60)

SMALL = (*SMALL_STEPS, "optimizer.clip=0.7", "optimizer.lr=2e-2", "optimizer.beta1=0.8", "optimizer.beta2=0.97",
         "optimizer.weight_decay=0.3", "steps=5")  # fmt: skip

GEOMETRIES = {
    "odd": ("model.vocab_size=13", "model.context=7", "model.layers=2", "model.heads=3", "model.channels=15"),
    "one token": ("model.vocab_size=11", "model.context=1", "model.layers=1", "model.heads=1", "model.channels=9"),
    "one sequence": ("model.context=9", "batch_size=1", "lanes=1", "model.channels=18", "model.heads=2"),
    "accumulated": ("batch_size=3", "gradient_accumulation_steps=3", "micro_batch=3", "lanes=2"),
    "shared lanes": ("batch_size=6", "lanes=2", "shared_lanes=true", "threads.backward=3"),
    "in micro-batches": ("batch_size=10", "micro_batch=2", "lanes=4", "model.vocab_size=5"),
}


REMEDIES = {
    "none": ("delay_correction=none",),
    "auto": ("optimizer.beta1=0.95",),
    "lead": ("delay_correction=lead", "optimizer.lead=3"),
    "forecast": ("delay_correction=forecast", "optimizer.forecast_lead=1.5"),
    "warmup": ("delay_correction=warmup", "schedule.delay_warmup=3"),
    "auto, synchronous at first": ("optimizer.beta1=0.95", "schedule.synchronous=2"),
    "lead, synchronous at first": (
        "delay_correction=lead",
        "schedule.synchronous=3",
        "optimizer.beta1=0.8",
        "optimizer.synchronous_beta1=0.3",
    ),
    "synchronous throughout": ("schedule.synchronous=9",),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_updates_through_the_pipeline_equal_those_of_the_reference(delay: int, geometry: str) -> None:
    assert_reference_updates(*GEOMETRIES[geometry], *REMEDIES["none"], f"delay={delay}")


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_remedies_for_a_delay_are_those_of_the_reference(delay: int, remedy: str) -> None:
    assert_reference_updates(*GEOMETRIES["odd"], *REMEDIES[remedy], f"delay={delay}")


GROUPS = 'optimizer.groups=[{"match": "*bias", "lr": 3}, {"match": "w?e", "decay": 0.9}, {"match": "qkv*", "lr": 0.2}]'
SWITCHES = {
    "groups": (GROUPS,),
    "values": ("optimizer.clip_value=0.01",),
    "values of shared lanes": ("optimizer.clip_value=0.02", "shared_lanes=true", "threads.backward=3"),
    "both, scaled": (
        GROUPS,
        "optimizer.clip_value=0.01",
        "loss_scale.kind=static",
        "loss_scale.initial=64",
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("remedy", ["none", "auto"])
def test_switches_of_the_optimizer_are_those_of_the_reference(remedy: str, switch: str) -> None:
    assert_reference_updates(*GEOMETRIES["odd"], *REMEDIES[remedy], "delay=1", *SWITCHES[switch])


def assert_reference_updates(*overrides: str) -> None:
    config = tiny(*SMALL, "threads.forward=2", "threads.backward=2", *overrides)
    training = build(config)
    start_from(training, random_weights(config))
    expected = expectation(training)
    assert_expected(training, run_threads(training), expected)
    if not config.optimizer.clip_value:
        assert expected.tensors["norms"].max() > config.optimizer.clip, "gradients are clipped"


def test_the_reference_distinguishes_delays() -> None:
    """The comparison above can fail: another delay differs by far more than a rounding error."""
    config = tiny(*SMALL, "delay=1")
    trainings = [build(tiny(*SMALL, f"delay={delay}", "delay_correction=none")) for delay in (1, 2)]
    for training in trainings:
        start_from(training, random_weights(config))
    one, two = map(expectation, trainings)
    for name in one.start:
        key = f"change to version 5 of {name}"
        assert distance(two.tensors[key], one.tensors[key]) > 100 * (one.bounds[key] + two.bounds[key])
