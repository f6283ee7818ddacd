"""Loss scaling: the transition rules, and the states in checkpoints."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.stages.checkpoint.checkpoint_writer import GEOMETRY, state_of
from tests.stages.support import (
    tiny,
)
from threadloom.stages.checkpoint import Checkpoint, TrainingState, save_checkpoint
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE, CheckpointManifest, encode_manifest
from threadloom.stages.config import LossScaling, ResolvedLossScale
from threadloom.stages.memory.loss_scale import CEILING, FLOOR, MAX_SKIPPED, LossScaler, ScaleState
from threadloom.stages.resolve.trajectory_settings import trajectory
from threadloom.stages.storage import CheckpointError

pytestmark = pytest.mark.timeout(60)


def scaler(kind: LossScaling = LossScaling.DYNAMIC, **settings: float) -> LossScaler:
    return LossScaler(msgspec.convert({"kind": kind.value, **settings}, ResolvedLossScale))


# --- the transition ---------------------------------------------------------------------------------------------------


class GradScaler:
    """The rules of torch.amp.GradScaler, from its documentation."""

    def __init__(self, scale: float, growth: float, backoff: float, interval: int) -> None:
        self.scale, self.growth, self.backoff, self.interval, self.tracker = scale, growth, backoff, interval, 0

    def update(self, finite: bool) -> None:
        if not finite:
            self.scale, self.tracker = self.scale * self.backoff, 0
        elif self.tracker + 1 == self.interval:
            self.scale, self.tracker = self.scale * self.growth, 0
        else:
            self.tracker += 1


@given(
    events=st.lists(st.booleans(), max_size=40),
    growth=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
    backoff=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    interval=st.integers(1, 5),
)
def test_without_delay_it_equals_torchs_between_floor_and_ceiling(
    events: list[bool], growth: float, backoff: float, interval: int
) -> None:
    ours = scaler(growth=growth, backoff=backoff, interval=interval)
    twin, state = GradScaler(1024.0, growth, backoff, interval), ours.start(0)
    for finite in events:
        if twin.scale * backoff < FLOOR or twin.scale * growth > CEILING:
            break
        twin.update(finite)
        state = ours.after(state, state.scale, finite)
        assert (state.scale, state.good) == (twin.scale, twin.tracker)


def by_version(ours: LossScaler, events: Iterable[bool], delay: int) -> list[ScaleState]:
    """Return the state of every version, where batch k reads version max(k - delay, 0)."""
    states = [ours.start(0)]
    for batch, finite in enumerate(events):
        states.append(ours.after(states[-1], states[max(batch - delay, 0)].scale, finite))
    return states


@given(
    events=st.lists(st.booleans(), max_size=60),
    delay=st.integers(0, 3),
    interval=st.integers(1, 4),
    initial=st.sampled_from([2.0**-20, FLOOR, 1.0, 1024.0, CEILING, 2.0**40]),
    kind=st.sampled_from([LossScaling.STATIC, LossScaling.DYNAMIC]),
)
def test_counts_add_up_and_the_scale_stays_within_its_limits(
    events: list[bool], delay: int, interval: int, initial: float, kind: LossScaling
) -> None:
    states = by_version(scaler(kind, initial=initial, interval=interval), events, delay)
    for version, state in enumerate(states):
        assert state.version == version
        assert state.skipped == version - sum(events[:version])
        assert min(FLOOR, initial) <= state.scale <= max(CEILING, initial)
        assert math.frexp(state.scale)[0] == 0.5, "it remains a power of two"
        assert 0 <= state.good < interval
        assert kind is LossScaling.DYNAMIC or state.scale == initial
        in_a_row = next((n for n, finite in enumerate(reversed(events[:version])) if finite), version)
        assert state.in_row == in_a_row


def test_batches_in_flight_at_an_overflow_do_not_lower_the_scale_again() -> None:
    """At τ = 2 batches 0, 1, 2 have scale 1024 and overflow; batch 3 is the first with the lower scale."""
    states = by_version(scaler(interval=2), [False, False, False, False, True, True, True, True, True], delay=2)
    assert [state.scale for state in states] == [1024, 512, 512, 512, 256, 256, 512, 512, 512, 512]
    # Batches 4 and 5 had 512 and were finite, which counts for 256; 6 and 7 had 256, which does not count for 512.
    assert [state.good for state in states] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_batches_in_flight_at_a_growth_do_not_count_towards_the_next() -> None:
    states = by_version(scaler(interval=1), [True] * 7, delay=2)
    assert [state.scale for state in states] == [1024, 2048, 2048, 2048, 4096, 4096, 4096, 8192]


def test_a_dynamic_scale_fails_at_the_floor() -> None:
    ours = scaler(initial=4 * FLOOR)
    state, skipped = ours.start(0), 0
    while not ours.failure(state, state.scale):
        state, skipped = ours.after(state, state.scale, finite=False), skipped + 1
    assert (state.scale, skipped) == (FLOOR, 2)
    # A batch of an older version with a higher scale does not fail the run.
    assert ours.failure(state, 2 * FLOOR) is None


@pytest.mark.parametrize("ours", [scaler(LossScaling.STATIC), scaler(backoff=1.0)], ids=["static", "backoff-1"])
def test_a_scale_that_cannot_be_lowered_fails_after_max_skipped(ours: LossScaler) -> None:
    state = ours.start(0)
    for _ in range(MAX_SKIPPED - 1):
        assert ours.failure(state, state.scale) is None
        state = ours.after(state, state.scale, finite=False)
    assert f"{MAX_SKIPPED} consecutive updates" in str(ours.failure(state, state.scale))
    state = ours.after(state, state.scale, finite=True)
    assert ours.failure(state, state.scale) is None


@pytest.mark.parametrize(("backoff", "initial"), [(0.999, 1024.0), (0.5, 2.0**40)])
def test_a_scale_whose_lowering_does_not_help_fails_after_twice_as_many(backoff: float, initial: float) -> None:
    ours = scaler(backoff=backoff, initial=initial)
    state = ours.start(0)
    for _ in range(2 * MAX_SKIPPED - 1):
        assert ours.failure(state, state.scale) is None
        state = ours.after(state, state.scale, finite=False)
    assert f"{2 * MAX_SKIPPED} consecutive updates overflowed, down to" in str(ours.failure(state, state.scale))
    # A batch that was in flight when the scale was lowered does not fail the run.
    assert ours.failure(state, 2 * state.scale) is None
    assert ours.failure(ours.after(state, state.scale, finite=True), state.scale) is None


def test_without_scaling_nothing_is_skipped() -> None:
    off = scaler(LossScaling.NONE)
    assert not off.on
    assert off.start(7) == ScaleState(scale=1.0, applied=7)
    assert off.failure(off.start(7), 1.0) == "losses are not scaled"


def test_a_run_begins_with_the_saved_state_if_the_scale_is_dynamic() -> None:
    saved = ScaleState(scale=64.0, good=3, in_row=0, skipped=2, applied=5)
    assert scaler().start(7, saved) is saved
    static = scaler(LossScaling.STATIC, initial=8.0).start(7, saved)
    assert static == ScaleState(scale=8.0, good=0, in_row=0, skipped=2, applied=5)


@pytest.mark.parametrize(
    "numbers",
    [{"scale": 0.0}, {"scale": math.inf}, {"scale": math.nan}, {"good": -1}, {"applied": -1}, {"in_row": 1}],
)
def test_an_impossible_state_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="loss scale"):
        ScaleState(**numbers)


# --- in checkpoints and configurations -------------------------------------------------------------------------------


def test_states_are_read_back_from_a_checkpoint(tmp_path: Path) -> None:
    whole = state_of(7, 1)
    states = {6: ScaleState(0.1, 3, 0, 2, 4), 7: ScaleState(2.0**-14, 0, 1, 3, 4)}
    state = TrainingState(7, 1, whole.versions, whole.optimizer, {}, GEOMETRY, states)
    assert Checkpoint.open(save_checkpoint(tmp_path, state, None, 0)).scalers == states
    with pytest.raises(ValueError, match=r"versions \[6, 7\], got \[7\]"):
        TrainingState(7, 1, whole.versions, whole.optimizer, {}, GEOMETRY, {7: states[7]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda states: states[:1], "loss scaler states of versions"),
        (lambda states: states[::-1], "loss scaler states of versions"),
        (lambda states: [{**states[0], "scale": -1.0}, states[1]], "the file is damaged"),
        (lambda states: [{**states[0], "scale": 1e999}, states[1]], "the file is damaged"),
        (lambda states: [{**states[0], "good": "many"}, states[1]], "the file is damaged"),
        (lambda states: "none", "the file is damaged"),
    ],
)
def test_modified_states_are_refused(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    whole = state_of(7, 1)
    states = {6: ScaleState(1.0, 0, 0, 0, 6), 7: ScaleState(1.0, 0, 0, 0, 7)}
    path = save_checkpoint(
        tmp_path, TrainingState(7, 1, whole.versions, whole.optimizer, {}, GEOMETRY, states), None, 0
    )
    file = path / MANIFEST_FILE
    content = json.loads(file.read_text())
    content["scalers"] = change(content["scalers"])
    try:
        manifest = msgspec.convert({**content, "checksum": "0" * 64}, CheckpointManifest)
        file.write_bytes(encode_manifest(manifest))
    except (msgspec.ValidationError, ValueError):
        file.write_text(json.dumps(content).replace("Infinity", "1e999"))
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(path)


def test_the_scale_belongs_to_the_trajectory_only_if_losses_are_scaled() -> None:
    def keys(*overrides: str) -> set[str]:
        return {key for key in trajectory(tiny(*overrides)) if key.startswith("loss_scale")}

    assert keys() == keys("loss_scale.interval=9") == set()
    assert keys("loss_scale.kind=static") == {"loss_scale.kind", "loss_scale.initial"}
    assert keys("loss_scale.kind=dynamic") == {f"loss_scale.{name}" for name in ResolvedLossScale.__struct_fields__}


def test_the_hint_names_settings_that_can_help() -> None:
    def hint(**changes: object) -> str:
        return LossScaler(ResolvedLossScale(**changes)).failure_hint  # type: ignore[arg-type]

    assert "lower loss_scale.initial" in hint(kind=LossScaling.STATIC)
    assert "loss_scale.backoff" in hint(kind=LossScaling.DYNAMIC, backoff=1.0)
    for changes in ({"kind": LossScaling.DYNAMIC}, {"kind": LossScaling.NONE}):
        assert "optimizer.lr" in hint(**changes)
        assert "loss_scale" not in hint(**changes)
