"""Threads of the stages: by setting or limit, in tuned settings, and for a run that is resumed elsewhere."""

from pathlib import Path

import pytest

from threadloom.stages.config import Config, flatten
from threadloom.stages.machine import ThreadLimit, detect
from threadloom.stages.resolve import (
    TunedSettings,
    TuningRecord,
    apply_overrides,
    load_config,
    record_path,
    resolve,
    stage_threads,
    trajectory,
    with_threads_of_this_process,
    with_tuned_settings,
    write_record,
)

CORES = 8
BASE = apply_overrides(load_config("nanogpt-cpu"), ["model.vocab_size=65"])


def saved_with(threads: int, *overrides: str) -> Config:
    """Return the saved configuration of a run that `threads` threads of a machine with `CORES` cores have begun."""
    return resolve(apply_overrides(BASE, overrides), CORES, threads=threads)


def resumed(saved: Config, limit: int, *overrides: str) -> Config:
    reopened = with_threads_of_this_process(saved, ThreadLimit(limit, "a test"))
    return resolve(apply_overrides(reopened, overrides), CORES, threads=limit)


def test_the_threads_are_those_of_the_setting_or_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert stage_threads(BASE).count == 1
    assert stage_threads(apply_overrides(BASE, ["threads.total=5"])) == ThreadLimit(5, "threads.total")


@pytest.mark.parametrize("overrides", [(), ("delay=2",), ("shared_lanes=true",), ("micro_batch=3", "lanes=2")])
@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8), (1, 3), (4, 4)])
def test_chosen_counts_are_chosen_again_for_the_new_limit(before: int, after: int, overrides: tuple[str, ...]) -> None:
    """The oracle is the run that was begun with the new limit."""
    saved, wanted = saved_with(before, *overrides), saved_with(after, *overrides)
    found = resumed(saved, after)
    assert found == wanted
    assert trajectory(found) == trajectory(saved)


@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8)])
def test_the_size_of_a_team_is_chosen_again(before: int, after: int) -> None:
    one = ("batch_size=1", "micro_batch=1", "gemm_backend=numba")
    assert resumed(saved_with(before, *one), after) == saved_with(after, *one)
    assert resumed(saved_with(8, *one, "threads.team=3", "threads.forward=2"), 8).threads.team == 3, "it was set"


def test_set_counts_are_kept_up_to_the_limit(logged: list[str]) -> None:
    saved = saved_with(8, "threads.forward=6", "threads.update=2", "threads.blas=3", "slots=9", "gemm_backend=blas")
    same = resumed(saved, 8)
    assert same == saved
    assert not logged
    less = resumed(saved, 4)
    assert (less.threads.forward, less.threads.update, less.threads.blas, less.slots) == (4, 2, 3, 9)
    assert trajectory(less) == trajectory(saved)
    (said,) = logged
    assert "up to 8 per stage and continues with 4, by a test" in said


def test_a_setting_of_the_resuming_command_counts(logged: list[str]) -> None:
    assert resumed(saved_with(8), 2, "threads.forward=7").threads.forward == 7
    assert resumed(saved_with(8, "threads.total=8"), 2).threads.forward == 2
    assert resumed(saved_with(8, "threads.total=2"), 4).threads.forward == 2, "it was set"


@pytest.mark.usefixtures("logged")
def test_tuned_settings_hold_for_their_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADLOOM_CACHE", str(tmp_path))
    machine = detect()
    choice = TunedSettings.of(resolve(BASE, CORES, threads=3)).changed(channel_capacity=7)
    record = TuningRecord(
        machine=machine.fingerprint(), config=BASE.name, measured_with={}, choice=choice, kept_defaults=False,
        reason="", seconds=1.0,
    )  # fmt: skip
    other = machine.logical_cores + 1
    write_record(record_path(BASE, machine, threads=other), record)
    assert flatten(with_tuned_settings(BASE, machine, other))["channel_capacity"] == 7
    assert with_tuned_settings(BASE, machine) == with_tuned_settings(BASE, machine, machine.logical_cores) == BASE
    assert record_path(BASE, machine) == record_path(BASE, machine, threads=machine.logical_cores)
