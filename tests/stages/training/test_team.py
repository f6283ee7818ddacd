"""Threads that divide the work of a micro-batch: the bits of one thread, when there are any, failures and aborts."""

import threading
from typing import Any

import pytest

from tests.stages.support import LLAMA, TINY, WAIT, build, result, run_sequence, run_threads, tiny
from threadloom.kernels.common import meet
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32 import gpt2_team
from threadloom.pipeline import Cancelled, StageFailure
from threadloom.stages.config import Config, ConfigError
from threadloom.stages.memory import Float32Memory
from threadloom.stages.step import Member, Teams

pytestmark = [
    pytest.mark.timeout(300),  # the first run compiles kernels
    pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently"),
]

ONE = ("batch_size=1", "micro_batch=1", "lanes=1")
"""One sequence of 7 tokens; 3 heads of 5 channels."""


def members_of(*overrides: str) -> int:
    return tiny(*overrides).threads.team


LLAMA_PLAIN = (*ONE, "model.qk_norm=false")
BF16 = ("precision=bf16",)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels before any test waits for threads that call them."""
    for base, settings in ((TINY, ONE), (LLAMA, LLAMA_PLAIN)):
        run_sequence(build(tiny(*settings, "threads.team=1", "steps=1", base=base)))
        run_sequence(build(tiny(*settings, "threads.team=2", "steps=1", base=base)))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("lanes=1", "batch_size=2"),
        ("lanes=2", "batch_size=3", "delay=1", "threads.forward=2"),
        ("batch_size=3", "micro_batch=3", "schedule.context_warmup=2", "schedule.context_start=1"),
        ("train.freeze=ln*", "dropout.embedding=0.2"),
    ],
    ids=["one", "accumulated", "several at once", "documents", "frozen"],
)
def test_a_team_does_not_change_a_bit(settings: tuple[str, ...]) -> None:
    _compare(TINY, *ONE, *settings)


@pytest.mark.parametrize("documents", [(), ("schedule.context_warmup=2", "schedule.context_start=1")])
def test_nor_does_one_of_a_llama(documents: tuple[str, ...]) -> None:
    _compare(LLAMA, *LLAMA_PLAIN, *documents)


@pytest.fixture(scope="module")
def compiled_bf16() -> None:
    """Compile the kernels of bfloat16."""
    for base, settings in ((TINY, ONE), (LLAMA, LLAMA_PLAIN)):
        for members in (1, 2):
            overrides = (*settings, *BF16, f"threads.team={members}", "steps=1")
            run_sequence(build(tiny(*overrides, base=base)))


@pytest.mark.usefixtures("compiled_bf16")
@pytest.mark.parametrize(("base", "plain"), [(TINY, ONE), (LLAMA, LLAMA_PLAIN)], ids=["gpt2", "llama"])
@pytest.mark.parametrize(
    "settings",
    [
        ("train.freeze=*bias", "dropout.embedding=0.2"),
        ("batch_size=3", "micro_batch=3", "schedule.context_warmup=2", "schedule.context_start=1", "recompute=true"),
    ],
    ids=["frozen", "recomputed documents"],
)
def test_nor_does_one_in_bfloat16(base: Config, plain: tuple[str, ...], settings: tuple[str, ...]) -> None:
    _compare(base, *plain, *BF16, *settings)


def _compare(base: Config, *settings: str) -> None:
    """Compare runs with teams with one without, bit by bit."""
    common = (*settings, "steps=4", "evaluation.interval=2")
    alone = result(*_run(base, *common, "threads.team=1"))
    for members in (2, 3, 5):
        found = result(*_run(base, *common, f"threads.team={members}"))
        assert found.updates == alone.updates
        assert found.tensors.keys() == alone.tensors.keys()
        assert [name for name in alone.tensors if found.tensors[name].tobytes() != alone.tensors[name].tobytes()] == []


def _run(base: Config, *settings: str) -> tuple[Any, Any]:
    training = build(tiny(*settings, base=base), evaluate=True)
    return training, run_threads(training)


def test_there_is_a_team_where_threads_would_be_idle() -> None:
    assert members_of(*ONE) == 2
    assert members_of(*ONE, "threads.total=5") == 5
    assert members_of("batch_size=2", "micro_batch=1", "threads.total=5") == 2
    assert members_of("batch_size=2", "micro_batch=1") == 1, "as many micro-batches as threads"
    assert members_of(*ONE, "delay=1") == 1, "the passes of two batches are at work"
    assert members_of(*ONE, *BF16) == members_of(*ONE, *BF16, "gemm_backend=blas") == 2


@pytest.mark.parametrize(
    "setting",
    ["precision=bf16x3", "precision=fp16", "gemm_backend=blas", "lora.rank=2", "dropout.residual=0.1",
     "loss.z_loss=1e-4", "shared_lanes=true", "embedding.rank=2"],
)  # fmt: skip
def test_what_has_no_kernels_of_teams_is_not_divided(setting: str) -> None:
    assert members_of(*ONE, setting) == 1
    with pytest.raises(ConfigError, match=r"threads\.team: expected 1 with"):
        tiny(*ONE, setting, "threads.team=2")


def test_a_llama_with_norms_of_heads_is_not_divided() -> None:
    assert tiny(*ONE, base=LLAMA).threads.team == 1
    assert tiny(*LLAMA_PLAIN, *BF16, base=LLAMA).threads.team == 2
    assert tiny(*LLAMA_PLAIN, base=LLAMA).threads.team == 2


def teams_of(members: int) -> Teams:
    config = tiny(*ONE, f"threads.team={members}")
    return Teams(config, Float32Memory(config.geometry(), config.micro_batch))


def test_the_first_error_of_a_member_is_raised_and_ends_the_waits_of_the_others() -> None:
    teams = teams_of(3)

    def work(member: Member) -> None:
        if member.place.member == 1:
            while member.place.counts[[0, 2], 0].sum() < 2:  # the others wait at their meeting
                threading.Event().wait(0.001)
            raise ValueError("on purpose")
        meet(member.place)

    with pytest.raises(ValueError, match="on purpose"):
        teams.run(work)
    with pytest.raises(Cancelled):
        teams.run(lambda _: None)


def test_an_abort_ends_the_wait_for_a_member() -> None:
    teams, end = teams_of(2), threading.Event()
    waits, raised = threading.Event(), list[type[BaseException]]()

    def work(member: Member) -> None:
        if member.place.member == 1:
            while member.place.counts[0, 0] == 0:
                threading.Event().wait(0.001)
            waits.set()
            assert end.wait(WAIT)
        else:
            meet(member.place)

    def call() -> None:
        try:
            teams.run(work)
        except Cancelled as error:
            raised.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    assert waits.wait(WAIT)
    teams.abort()
    end.set()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert raised == [Cancelled]
    with pytest.raises(Cancelled):
        teams.run(work)


def test_a_run_reports_the_error_of_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = gpt2_team.team_blocks_forward

    def fail(*arguments: Any) -> None:
        if arguments[-1].member == 1:
            raise ValueError("on purpose")
        kernel(*arguments)

    monkeypatch.setattr(gpt2_team, "team_blocks_forward", fail)
    with pytest.raises(StageFailure) as caught:
        run_threads(build(tiny(*ONE, "threads.team=2")))
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.stage == "forward"
