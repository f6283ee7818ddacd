"""The memory plan, against the allocations of a run."""

from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import LLAMA, build, planned, tiny as tiny_model
from threadloom.stages.config import BatchSizes, Config, Gpt2Config, Precision, ResolvedConfig
from threadloom.stages.data.batches import RandomTokens, evaluation_batches
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.memory.allocation_plan import check_allocation, format_memory_plan
from threadloom.stages.models import Geometry
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.step.evaluate import Validation
from threadloom.stages.step.saving import CheckpointOutput
from threadloom.stages.training.training import Training

CHANGES: tuple[dict[str, int | str], ...] = (
    {},
    {"delay": 2},
    {"lanes": 3, "extra_banks": 0},
    {"slots": 9, "delay": 1},
    {"delay": 2, "delay_correction": "none"},
    {"delay": 2, "delay_correction": "lead"},
    {"delay": 1, "delay_correction": "forecast", "extra_banks": 0},
    {"threads.backward": 5},
    {"lanes": 1, "shared_lanes": "true", "threads.backward": 3},
)


def tiny(**changes: int | str) -> ResolvedConfig:
    model = Gpt2Config(vocab_size=11, context=6, layers=2, heads=3, channels=15)
    config = Config(name="tiny", model=model, batch_size=6, micro_batch=2, lanes=2, steps=3)
    return resolve(apply_overrides(config, [f"{key}={value}" for key, value in changes.items()]), cores=2)


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("outputs", [False, True])
def test_a_run_allocates_what_is_planned(changes: dict[str, int | str], outputs: bool, tmp_path: Path) -> None:
    config = tiny(**changes)
    data = RandomTokens(Geometry(11, 6, 1, 1, 1), BatchSizes(6, 2), 0)
    windows = evaluation_batches(
        TokenFile(np.arange(60, dtype=np.uint16) % 11, 11, 6, tmp_path), batch_size=2, micro_batch=2, batches=2
    )
    validation = Validation(windows, windows) if outputs else None
    training = Training(config, data, validation, CheckpointOutput(tmp_path) if outputs else None)
    assert training.memory() == planned(config, evaluates=outputs, saves=outputs)


@pytest.mark.parametrize("precision", [precision for precision in Precision if precision is not Precision.AUTO])
@pytest.mark.parametrize("changes", [("delay=2",), ("model.tied=true", "shared_lanes=true", "threads.backward=3")])
def test_a_llama_allocates_what_is_planned(precision: Precision, changes: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny_model(f"precision={precision.value}", *changes, base=LLAMA)
    training = build(config, tmp_path, evaluate=True)
    assert training.memory() == planned(config, evaluates=True, saves=True)


def test_an_allocation_that_differs_from_the_plan_names_the_part() -> None:
    plan = {"slots": 1_000, "evaluation": 0}
    check_allocation(plan, [1_000, 0])
    with pytest.raises(AssertionError, match="slots: planned 1,000 bytes, allocated 999"):
        check_allocation(plan, [999, 0])
    with pytest.raises(ValueError, match="shorter"):
        check_allocation(plan, [1_000])


def test_scratch_is_planned_for_every_micro_batch_that_can_be_in_backward() -> None:
    alone, apart, more, shared = (
        planned(tiny(**changes))["backward scratch"]
        for changes in ({"lanes": 1}, {}, {"threads.backward": 5}, {"shared_lanes": "true", "threads.backward": 3})
    )
    assert (apart, more, shared) == (2 * alone, 2 * alone, 3 * alone)


def test_the_table_ends_in_the_total() -> None:
    table = format_memory_plan({"a": 1_500_000, "b": 0, "c": 4_000_000})
    assert table.splitlines()[0].split() == ["c", "4.0", "MB"]
    assert table.splitlines()[-1].split() == ["total", "5.5", "MB"]
    assert "b" not in table


def test_a_geometry_counts_its_hidden_width() -> None:
    assert Geometry(11, 6, 2, 3, 15).hidden == 60
