"""The noise of the gradient, compared with the gradients of single sequences by the float64 reference."""

import numpy as np
import pytest

from tests.stages.resolve.support import refusal
from tests.stages.support import SEVERAL_CHUNKS, build, run_sequence, run_threads, tiny
from tests.stages.training.oracle import oracle_of
from tests.stages.training.twin import random_weights, sequences, start_from, start_of
from threadloom.stages.config import ConfigError
from threadloom.stages.memory.graph_items import GradientNoise, Update

pytestmark = pytest.mark.timeout(60)

SCALED = ("loss_scale.kind=static", "loss_scale.initial=64")


@pytest.mark.parametrize(
    "overrides",
    [
        ("lanes=4",), ("lanes=3",), ("lanes=2", "optimizer.clip_value=0.001", *SCALED),
        ("batch_size=6", "micro_batch=2", "lanes=2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("delay", [0, 1])
def test_the_noise_is_that_of_the_gradients_of_the_sequences(delay: int, overrides: tuple[str, ...]) -> None:
    training = build(tiny("noise_scale=true", "steps=1", f"delay={delay}", *overrides))
    config, oracle = training.config, oracle_of(training.config)
    start_from(training, random_weights(config))
    weights, (ids, targets) = start_of(training), sequences(training, 0)
    gradients = []
    for row in range(len(ids)):
        _, found = oracle.loss_and_gradients(weights, ids[row : row + 1], targets[row : row + 1], 1 / ids.shape[1])
        gradients.append(np.concatenate([found[name].ravel() for name in sorted(found)]))
    lane_of = [row // config.micro_batch % config.lanes for row in range(len(ids))]
    lanes = [np.mean([g for g, lane in zip(gradients, lane_of, strict=True) if lane == each], axis=0)
             for each in range(config.lanes)]  # fmt: skip
    sizes, whole = [lane_of.count(lane) for lane in range(config.lanes)], np.mean(gradients, axis=0)
    squares = np.mean([lane @ lane for lane in lanes])
    noise = (squares - whole @ whole) / (np.mean([1 / size for size in sizes]) - 1 / len(ids))
    if sizes == [1] * len(ids):
        assert noise == pytest.approx(np.var(gradients, axis=0, ddof=1).sum()), "that of a sample"
    (update,) = [event for event in run_sequence(training) if isinstance(event, Update)]
    assert update.noise is not None
    assert update.noise.noise == pytest.approx(noise, rel=1e-4)
    assert update.noise.signal == pytest.approx(whole @ whole - noise / len(ids), rel=1e-3, abs=1e-5 * (whole @ whole))


@pytest.mark.parametrize("delay", [0, 2])
def test_threads_do_not_change_it_and_it_changes_no_update(delay: int) -> None:
    common = (*SEVERAL_CHUNKS, f"delay={delay}", "steps=4", "lanes=2")
    threads = ("threads.forward=2", "threads.backward=2", "threads.reduce=3")
    replayed = [event for event in run_sequence(build(tiny("noise_scale=true", *common))) if isinstance(event, Update)]
    found = run_threads(build(tiny("noise_scale=true", *common, *threads)))
    assert [event.noise for event in found if isinstance(event, Update)] == [update.noise for update in replayed]
    plain = [event for event in run_sequence(build(tiny(*common))) if isinstance(event, Update)]
    assert [(u.loss, u.grad_norm) for u in plain] == [(u.loss, u.grad_norm) for u in replayed]
    assert all(update.noise is None for update in plain)


def test_one_lane_and_factors_are_refused_and_a_negative_signal_has_no_scale() -> None:
    with refusal("noise_scale", "lanes = 1", "lanes=2"):
        tiny("noise_scale=true", "lanes=1")
    with pytest.raises(ConfigError, match=r"^noise_scale: expected false with an embedding of factors"):
        tiny("noise_scale=true", "embedding.rank=3")
    assert GradientNoise(2.0, -1.0).scale is None
    assert GradientNoise(2.0, 0.5).scale == 4.0
