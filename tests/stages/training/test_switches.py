"""Options of the recipe under the guarantees: any threads, the replay, and a resumed run compute the same bits."""

from pathlib import Path

import pytest

from tests.stages.support import (
    SEVERAL_CHUNKS,
    Result,
    assert_same,
    build,
    result,
    run_sequence,
    run_threads,
    tiny,
)
from threadloom.stages.checkpoint import Checkpoint

pytestmark = pytest.mark.timeout(60)

SKIPS = ("guard.action=skip", "guard.window=4", "guard.deviations=0")
SWITCHES = {
    "groups and values": (
        'optimizer.groups=[{"match": "*.bias", "decay": 0.1, "lr": 2}, {"match": "wte", "lr": 0.5}]',
        "optimizer.clip_value=0.01",
    ),
    "guard": SKIPS,
    "guard and scale": (*SKIPS, "loss_scale.kind=dynamic", "loss_scale.initial=16"),
}


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("switch", SWITCHES)
def test_threads_replay_and_a_resumed_run_have_the_same_bits(switch: str, delay: int, tmp_path: Path) -> None:
    common = (
        *SEVERAL_CHUNKS, f"delay={delay}", "steps=5", "evaluation.interval=2", "checkpoint.interval=1",
        "checkpoint.keep=0", f"checkpoint.copies={'true' if delay else 'false'}", *SWITCHES[switch],
    )  # fmt: skip
    threads = ("threads.forward=3", "threads.backward=2", "threads.reduce=2", "threads.update=3")
    training = build(tiny(*common), evaluate=True)
    expected = result(training, run_sequence(training))
    whole = build(tiny(*common, *threads), tmp_path, evaluate=True)
    found = result(whole, run_threads(whole))
    assert_same(Result(found.tensors, found.updates, found.evaluations, ()), expected)
    plain = build(tiny(*common[: -len(SWITCHES[switch])]), evaluate=True)
    without = result(plain, run_sequence(plain)).tensors
    assert any((tensor != expected.tensors[name]).any() for name, tensor in without.items()), "the options matter"

    resumed = build(tiny(*common, *threads), start=Checkpoint.open(tmp_path / "step-000003"), evaluate=True)
    rest = tuple(evaluation for evaluation in expected.evaluations if evaluation[0] > 3)
    assert_same(result(resumed, run_threads(resumed)), Result(expected.tensors, expected.updates[3:], rest, ()))
