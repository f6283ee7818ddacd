"""Threads that divide the tokens of a generation: equal bits, failures, interrupts, and nothing that is left behind."""

import threading
from typing import Any

import numpy as np
import pytest

from tests.stages.support import LLAMA, WAIT, tiny
from tests.stages.training.oracle import oracle_of
from threadloom.kernels.common import Team, meet_soon
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32 import decode
from threadloom.pipeline import Arena
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.inference import DecodePrecision, SamplingSettings, decode_threads, generate, stored_weights
from threadloom.stages.inference.decoder import Decoder, GenerationError
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.inference.thread_choice import ThreadChoice
from threadloom.stages.layouts import ModelWeights, as_weights
from threadloom.stages.machine import thread_limit
from threadloom.stages.models import Geometry, parameter_shapes

pytestmark = pytest.mark.timeout(300)  # includes compiling with an empty cache

GPT2 = tiny("model.channels=75", "model.vocab_size=301", "model.context=9")
"""Three heads of 25 channels; every matrix has several panels, the last of them incomplete."""
WIDE = ("model.channels=75", "model.vocab_size=301", "model.mlp_width=133")
GROUPED = tiny(*WIDE, "model.tied=true", "model.qk_norm=false", "model.kv_heads=3", base=LLAMA)
NORMED = tiny(*WIDE, base=LLAMA)
ANYTHING = SamplingSettings(temperature=1.0)


class Always(ThreadChoice):
    """All threads for every token, whatever the times are."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.threads = most

    def record(self, seconds: float) -> None:
        """Ignore the time."""


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadloom.stages.inference.decoder.ThreadChoice", Always)


def weights_of(config: ResolvedConfig, precision: DecodePrecision) -> tuple[ModelWeights, Geometry]:
    geometry = config.model.geometry()
    arena = Arena(parameter_shapes(geometry))
    for name, tensor in oracle_of(config).random_tensors(np.random.default_rng(3), 0.3).items():
        arena[name][...] = tensor
    return stored_weights(as_weights(geometry, arena), geometry, precision), geometry


def members_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if ", member " in thread.name]


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently")
@pytest.mark.parametrize("precision", [DecodePrecision.FLOAT32, DecodePrecision.BF16, DecodePrecision.INT8])
@pytest.mark.parametrize("config", [GPT2, GROUPED, NORMED], ids=["gpt2", "grouped llama", "llama"])
def test_the_bits_do_not_depend_on_the_number_of_threads(config: ResolvedConfig, precision: DecodePrecision) -> None:
    weights, geometry = weights_of(config, precision)
    ids = np.random.default_rng(1).integers(0, geometry.vocabulary, 2 * geometry.context).tolist()
    found = {}
    for threads in (1, 2, 3, 8):
        decoder = Decoder(weights, geometry, threads)
        rows = [decoder.prefill(ids[:3]).copy(), *(decoder.append(token).copy() for token in ids[3:])]
        decoder.close()
        found[threads] = np.concatenate(rows).tobytes()
    assert set(found.values()) == {found[1]}


def test_a_generation_leaves_no_thread() -> None:
    weights, geometry = weights_of(GPT2, DecodePrecision.FLOAT32)
    whole = list(generate(weights, geometry, [1], 12, ANYTHING, 5, threads=3))
    assert members_left() == []
    begun = generate(weights, geometry, [1], 12, ANYTHING, 5, threads=3)
    assert [next(begun) for _ in range(4)] == whole[:4]
    begun.close()  # type: ignore[attr-defined]  # a generator
    assert members_left() == []
    assert whole == list(generate(weights, geometry, [1], 12, ANYTHING, 5, threads=1))


def test_a_member_that_fails_ends_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, geometry = weights_of(GPT2, DecodePrecision.FLOAT32)
    kernel = decode.decode_token

    def fail(*arguments: Any) -> None:
        if arguments[-1].member == 2:
            raise ValueError("on purpose")
        kernel(*arguments)

    decoder = Decoder(weights, geometry, 3)
    first = decoder.prefill([1, 2]).copy()
    monkeypatch.setattr(decode, "decode_token", fail)
    with pytest.raises(ValueError, match="on purpose"):
        decoder.append(3)
    assert members_left() == []
    assert decoder.position == 2
    monkeypatch.undo()
    again = decoder.append(3).copy()
    decoder.prefill([1, 2])
    assert again.tobytes() == decoder.append(3).tobytes() != first.tobytes()
    decoder.close()


def test_a_change_of_the_number_within_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, geometry = weights_of(GPT2, DecodePrecision.FLOAT32)
    expected = list(generate(weights, geometry, [1], 40, ANYTHING, 5, threads=1))

    class Alternating(Always):
        def record(self, seconds: float) -> None:
            self.threads = self.most + 1 - self.threads

    monkeypatch.setattr("threadloom.stages.inference.decoder.ThreadChoice", Alternating)
    assert list(generate(weights, geometry, [1], 40, ANYTHING, 5, threads=3)) == expected
    assert members_left() == []


def test_no_thread_is_refused() -> None:
    weights, geometry = weights_of(GPT2, DecodePrecision.FLOAT32)
    with pytest.raises(GenerationError, match="threads: expected a number of at least 1, got 0"):
        generate(weights, geometry, [1], 1, ANYTHING, 0, threads=0)


def test_small_models_are_decoded_by_one_thread() -> None:
    weights, geometry = weights_of(GPT2, DecodePrecision.FLOAT32)
    assert decode_threads(weights, geometry) == 1
    large = weights._replace(wte=np.broadcast_to(np.float32(0), (1 << 29, 1)))
    assert decode_threads(large, geometry) == min(thread_limit().count, 256)


def test_all_members_work_at_the_same_time_in_the_same_threads() -> None:
    team, seen = MemberThreads(3), list[tuple[int, int]]()

    def work(place: Team) -> None:
        seen.append((place.member, threading.get_ident()))
        meet_soon(place)

    for _ in range(5):
        team.run(work, team.members)
    team.close()
    assert members_left() == []
    assert sorted(member for member, _ in seen) == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(seen)) == 3
    assert (0, threading.get_ident()) in seen


def test_threads_without_work_leave_and_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadloom.stages.inference.member_threads._IDLE_SECONDS", 0.0)
    team, calls = MemberThreads(2), list[int]()

    def work(place: Team) -> None:
        calls.append(place.member)
        meet_soon(place)

    for _ in range(20):
        team.run(work, team.members)
    for thread in threading.enumerate():
        if ", member " in thread.name:
            thread.join(WAIT)
    assert members_left() == []
    team.run(work, team.members)
    assert sorted(calls) == [0] * 21 + [1] * 21
    team.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_waits_of_all_members(failing: int, error: type[BaseException]) -> None:
    team = MemberThreads(3)
    team.run(meet_soon, team.members)

    def work(place: Team) -> None:
        if place.member == failing:
            others = [member for member in range(3) if member != failing]
            while (place.counts[others, 0] < 2).any():  # the others wait at their second meeting
                threading.Event().wait(0.001)
            raise error("on purpose")
        meet_soon(place)

    for _ in range(2):
        with pytest.raises(error, match="on purpose"):
            team.run(work, team.members)
        assert members_left() == []
        team.run(meet_soon, team.members)
    team.close()


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.endswith("member 2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    team = MemberThreads(3)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        team.run(meet_soon, team.members)
    assert members_left() == []
    monkeypatch.undo()
    team.run(meet_soon, team.members)
    team.close()
