"""Errors of the engine pickle and copy, and stand in for exceptions that do not."""

import copy
import threading
from multiprocessing.reduction import ForkingPickler

import pytest

from threadloom.pipeline import PipelineError, Retry, ShutdownTimeout, SkipFailed, StageFailure, WorkerDied
from threadloom.pipeline.core import StandInError, type_names
from threadloom.pipeline.policy import Attempt, Decision

pytestmark = pytest.mark.timeout(20)


class TwoArguments(Exception):
    """An exception that can be pickled, but not restored."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Locked(OSError):
    """An exception that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def crossed(error: PipelineError) -> PipelineError:
    """Return the error as another process receives it."""
    other: PipelineError = ForkingPickler.loads(ForkingPickler.dumps(error))
    return other


ERRORS: list[PipelineError] = [
    StageFailure("work", 3, {"batch": 7}, "batch=7", ValueError("bad")),
    ShutdownTimeout({"g.work-0": "at line 3"}, 0.5),
    WorkerDied("it died", 77, -9),
    PipelineError("plain"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_and_copied(error: PipelineError) -> None:
    error.add_note("a note")
    for other in (crossed(error), copy.copy(error), error.without_traceback()):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
        assert repr(other.__cause__) == repr(error.__cause__)


@pytest.mark.parametrize("cause", [TwoArguments(1, 2), Locked()])
def test_a_cause_that_cannot_be_sent_keeps_its_types(cause: Exception) -> None:
    error = crossed(StageFailure("work", 0, {}, "1", cause))
    assert isinstance(error.__cause__, StandInError)
    assert error.__cause__.types == type_names(type(cause))
    assert error.__cause__.stands_for(type(cause))
    assert not error.__cause__.stands_for(KeyError)


def decision(policy: SkipFailed | Retry, error: Exception) -> object:
    return policy.decide(Attempt(error, 9, 0, 1))


def test_policies_match_the_types_that_an_error_stands_for() -> None:
    lost = StandInError("Locked: locked", type_names(Locked))
    assert decision(SkipFailed(errors=(Locked,)), lost) is Decision.SKIP
    assert decision(SkipFailed(errors=OSError), lost) is Decision.SKIP  # a base type
    assert decision(SkipFailed(errors=(StandInError,)), lost) is Decision.SKIP
    assert decision(SkipFailed(errors=(KeyError,)), lost) is Decision.FAIL


def test_policies_take_a_predicate() -> None:
    policy = SkipFailed(errors=lambda error: "429" in str(error))
    assert decision(policy, ValueError("status 429")) is Decision.SKIP
    assert decision(policy, ValueError("status 500")) is Decision.FAIL
    assert decision(Retry(errors=lambda error: False, then=policy), ValueError("429")) is Decision.SKIP


@pytest.mark.parametrize("errors", ["OSError", (OSError, "x"), 3, int, [OSError]])
def test_other_errors_are_refused_when_the_policy_is_created(errors: object) -> None:
    with pytest.raises(ValueError, match="SkipFailed: expected errors to be exception types"):
        SkipFailed(errors=errors)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Retry: expected errors to be exception types"):
        Retry(errors=errors)  # type: ignore[arg-type]


def test_settings_of_policies_are_numbers() -> None:
    with pytest.raises(ValueError, match="expected most to be a whole number, got '3'"):
        SkipFailed(most="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected times to be a whole number"):
        Retry(times=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected then to be a failure policy"):
        Retry(then=SkipFailed)  # type: ignore[arg-type]
