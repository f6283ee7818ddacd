"""Trainings that end early: a stage raises, Ctrl-C, or the caller leaves. conftest checks for leaked threads."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.stages.support import WAIT, build, intercept, run_threads, tiny, wait_for
from threadloom.pipeline import Cancelled, StageFailure
from threadloom.stages.checkpoint import Checkpoint
from threadloom.stages.memory.graph_items import Event, Update, label
from threadloom.stages.step.reducer import TrainingDiverged
from threadloom.stages.storage import finished_checkpoints
from threadloom.stages.training.training import Training

pytestmark = pytest.mark.timeout(60)

PROMPT = 8.0
"""Seconds within which a run ends: one by guarantee 4, the rest for a loaded machine; the grace period is 10 s."""

STEPS = 6
LAST = {"draw": 23, "embed": 23, "forward": 23, "backward": 23, "save": 2, "evaluate": 2}
"""Stage → number of its last call, counted from 0; for the others it is that of the last update."""
STAGES = ("draw", "embed", "forward", "backward", "collect", "reduce", "clip", "update", "publish", "evaluate", "save")


class Boom(Exception):
    pass


def make(folder: Path, *overrides: str, delay: int = 1) -> Training:
    """Return a training in which every stage runs: evaluations and checkpoints at steps 2, 4 and 6."""
    config = tiny(f"delay={delay}", f"steps={STEPS}", "evaluation.interval=2", "checkpoint.interval=2", *overrides)
    return build(config, folder, evaluate=True)


def place(item: Any) -> tuple[int, ...]:
    """Return the numbers that identify an item in its stage: batch and micro-batch or shard, or the step."""
    if isinstance(item, list):
        return (item[0].batch,)
    tag = label(item)
    return tuple(int(tag[name]) for name in ("batch", "micro", "shard", "step") if name in tag)


def place_of_call(stage: str, number: int) -> tuple[int, ...]:
    """Return the place of the item of call `number` of a stage, in the order in which items are created."""
    if stage in ("draw", "embed", "forward", "backward"):
        return divmod(number, 4)
    if stage in ("evaluate", "save"):
        return (2 * (number + 1),)
    return (number, 0) if stage in ("reduce", "update") else (number,)


@pytest.mark.parametrize("at", ["first", "middle", "last"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("delay", [0, 2])
def test_the_caller_gets_the_first_error_of_any_stage_at_any_item(
    delay: int, stage: str, at: str, tmp_path: Path
) -> None:
    training = make(tmp_path, delay=delay)
    last = LAST.get(stage, STEPS - 1)
    where = place_of_call(stage, {"first": 0, "middle": last // 2, "last": last}[at])
    error = Boom(f"{stage} at {where}")
    raised: list[float] = []

    def before(item: Any) -> None:
        if place(item) == where:
            raised.append(time.monotonic())
            raise error

    intercept(training, stage, before)
    seen: list[Event] = []
    graph = training.graph()
    with pytest.raises(StageFailure) as caught, graph.start(resources=training.resources, label=label) as run:
        seen.extend(run)
    ended = time.monotonic()
    failure = caught.value
    assert failure.stage == stage
    assert failure.__cause__ is error
    assert f"stage {stage!r} (worker {failure.worker}) failed on" in str(failure)
    named = {name: value for name, value in failure.label.items() if name != "version"}
    assert tuple(named.values())[: len(where)] == where
    assert ended - raised[0] < PROMPT
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training.")]
    # Earlier work is kept: updates are reported in order, and checkpoints are complete.
    steps = [event.step for event in seen if isinstance(event, Update)]
    assert steps == list(range(1, len(steps) + 1))
    for path in finished_checkpoints(tmp_path):
        assert Checkpoint.open(path).step in (2, 4, 6)
    assert not list(tmp_path.glob(".*")), "no partial checkpoint remains"


@pytest.mark.parametrize("stage", ["draw", "embed", "backward", "collect", "clip", "publish"])
def test_an_error_while_waiting_for_memory_is_reported_too(stage: str, tmp_path: Path) -> None:
    """`acquire` runs in the worker too."""
    training = make(tmp_path)
    error = Boom("while waiting")
    whole = getattr(training, stage)

    class Failing:
        def __call__(self, item: Any) -> Any:
            return whole(item)

        def acquire(self, item: Any) -> None:
            if place(item)[0] == 3:
                raise error
            whole.acquire(item)

    setattr(training, stage, Failing())
    with pytest.raises(StageFailure) as caught:
        run_threads(training)
    assert caught.value.stage == stage
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("stage", ["draw", "backward", "update", "save"])
@pytest.mark.parametrize("raised", [SystemExit, MemoryError, KeyboardInterrupt])
def test_every_kind_of_error_is_reported(stage: str, raised: type[BaseException], tmp_path: Path) -> None:
    training = make(tmp_path)
    error = raised("odd")

    def before(item: Any) -> None:
        raise error

    intercept(training, stage, before)
    with pytest.raises(StageFailure) as caught:
        run_threads(training)
    assert (caught.value.stage, caught.value.__cause__) == (stage, error)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_only_the_first_of_several_errors_is_reported(delay: int, tmp_path: Path) -> None:
    """Forward fails after update has ended the run: its error is not reported."""
    training = make(tmp_path, "slots=9", delay=delay)
    ended = threading.Event()
    abort = training.banks.abort

    def aborted() -> None:
        abort()
        ended.set()

    training.banks.abort = aborted  # type: ignore[method-assign]

    def update(item: Any) -> None:
        if item.batch == 2:
            raise Boom("first")

    def forward(item: Any) -> None:
        if item.batch >= 2:
            wait_for(ended, "the end of the run") if item.batch > 2 else None
        if ended.is_set():
            raise Boom("consequence")

    intercept(training, "update", update)
    intercept(training, "forward", forward)
    with pytest.raises(StageFailure, match="first") as caught:
        run_threads(training)
    assert caught.value.stage == "update"


@pytest.mark.parametrize("stage", ["forward", "backward", "update", "evaluate", "save"])
def test_ctrl_c_in_the_middle_ends_every_thread(stage: str, tmp_path: Path) -> None:
    """The signal arrives while a given stage processes batch 2."""
    training = make(tmp_path)
    pressed: list[float] = []

    def before(item: Any) -> None:
        if not pressed and (getattr(item, "batch", None) == 2 or getattr(item, "step", None) == 4):
            pressed.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    intercept(training, stage, before)
    with pytest.raises(KeyboardInterrupt):
        run_threads(training)
    assert time.monotonic() - pressed[0] < PROMPT


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_caller_that_leaves_the_block_ends_the_run(after: int, tmp_path: Path) -> None:
    """Items in flight are dropped, even while stages wait for slots, banks and channels."""
    training = make(tmp_path, "slots=1", "channel_capacity=1")
    taken: list[Event] = []
    with training.graph().start(resources=training.resources, label=label) as run:
        for event in run:
            if len(taken) == after:
                break
            taken.append(event)
    assert len(taken) == after
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training.")]


def test_a_sink_that_is_never_read_blocks_the_run_until_the_caller_leaves(tmp_path: Path) -> None:
    """With more updates than the sink's capacity, publish is blocked until the caller leaves."""
    training = build(tiny("steps=200", "batch_size=1", "lanes=1", "model.layers=1"), tmp_path)
    full = threading.Event()
    intercept(training, "publish", after=lambda _, made: full.set() if made.step == 65 else None)
    with training.graph().start(resources=training.resources, label=label):
        wait_for(full, "65 updates in a channel of 64")
    assert training.banks.statistics().newest < 70


def test_cancel_from_another_thread(tmp_path: Path) -> None:
    training = make(tmp_path, "steps=100000")
    reached = threading.Event()
    intercept(training, "publish", after=lambda _, made: reached.set() if made.step == 5 else None)
    graph = training.graph()
    with pytest.raises(Cancelled), graph.start(resources=training.resources, label=label) as run:

        def stop() -> None:
            wait_for(reached, "update 5")
            run.cancel()

        other = threading.Thread(target=stop)
        other.start()
        try:
            for _ in run:
                pass
        finally:
            other.join(WAIT)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_loss_of_nan_fails_before_the_weights_change(delay: int, tmp_path: Path) -> None:
    """Version 3 becomes NaN when it is published: the batch that reads it fails the run without an update."""
    training = make(tmp_path, f"delay={delay}", "evaluation.interval=0", delay=delay)
    published: list[int] = []
    saved = threading.Event()
    intercept(training, "save", after=lambda _, made: saved.set())

    def poison(shards: list[Any]) -> None:
        if shards[0].batch == 2:
            wait_for(saved, "the checkpoint of step 2")
            shards[0].target.weights.wte[:] = float("nan")

    intercept(training, "publish", poison, after=lambda _, made: published.append(made.step))
    with pytest.raises(StageFailure, match="expected a finite number") as caught:
        run_threads(training)
    assert isinstance(caught.value.__cause__, TrainingDiverged)
    assert caught.value.stage == "collect"
    assert caught.value.label["batch"] == 3 + delay
    assert published == list(range(1, 4 + delay))
    assert "optimizer.lr" in str(caught.value.__cause__)
    weights = build(training.config).banks
    with weights.lease(0) as lease:
        Checkpoint.open(finished_checkpoints(tmp_path)[0]).read_weights(2, lease.bank.arena)
        assert abs(lease.bank.arena.flat).max() < 10


def test_an_infinite_gradient_fails_before_the_weights_change(tmp_path: Path) -> None:
    """The loss is finite, the norm is not."""
    training = make(tmp_path)

    def poison(item: Any, _: Any) -> None:
        if item.batch == 3:
            training.gradient.flat[7] = float("inf")
            training.gradient.squares[0] = float("inf")

    intercept(training, "reduce", after=poison)
    with pytest.raises(StageFailure, match="gradient of update 4") as caught:
        run_threads(training)
    assert caught.value.stage == "clip"
    assert training.banks.statistics().newest == 3


@pytest.mark.parametrize("correction", ["none", "auto"])
def test_a_validation_loss_of_nan_fails_the_run(correction: str, tmp_path: Path) -> None:
    """With a delay no batch reads the last versions, but their evaluation does."""
    training = make(tmp_path, "delay=2", f"delay_correction={correction}", delay=2)

    def poison(shards: list[Any]) -> None:
        if shards[0].batch + 1 == training.config.steps:
            master = training.optimizer.master
            (shards[0].target.arena if master is None else master)["wte"][:] = float("nan")

    intercept(training, "publish", poison)
    with pytest.raises(StageFailure, match=r"validation loss after .* is nan") as caught:
        run_threads(training)
    assert isinstance(caught.value.__cause__, TrainingDiverged)
    assert "precision=float32" in str(caught.value.__cause__)
    assert caught.value.stage == "evaluate"
