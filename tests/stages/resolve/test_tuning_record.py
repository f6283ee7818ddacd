"""Records of tuned settings: their paths, when they apply, and damaged files."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from threadloom.stages.config import Config, Gemm, Gpt2Config
from threadloom.stages.machine import detect
from threadloom.stages.resolve import tuning_record
from threadloom.stages.resolve.loading import apply_overrides, load_config
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.tuning_record import (
    TunedSettings,
    TuningRecord,
    explicit_settings,
    record_path,
    with_defaults,
    with_tuned_settings,
    write_record,
)

TINY = Config(
    name="tiny", model=Gpt2Config(context=4, layers=1, heads=2, channels=8), batch_size=4, steps=10, delay=1
)  # fmt: skip
MACHINE = detect()
TUNED = TunedSettings(
    micro_batch=4, lanes=2, gemm=Gemm.NUMBA, blas=1, forward=2, backward=2, reduce=2, update=2, slots=6,
    channel_capacity=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keep(config: Config, explicit: Config | None = None, **values: int) -> tuple[Path, TunedSettings]:
    """Write a record of `config` as if it had been tuned, with other values than the defaults."""
    resolved = resolve(apply_overrides(config, ["model.vocab_size=65"]), 2)
    choice = msgspec.structs.replace(TunedSettings.of(resolved), **values)
    settings = explicit_settings(explicit) if explicit else {}
    path = record_path(config, MACHINE, settings)
    record = TuningRecord(
        machine="m", config="tiny", measured_with=settings, choice=choice, kept_defaults=False, reason="faster",
        seconds=1.0,
    )  # fmt: skip
    write_record(path, record)
    return path, choice


def test_each_precision_and_kind_of_lanes_has_its_own_record() -> None:
    settings = ("precision=float32", "precision=bf16", "precision=fp16", "shared_lanes=true", "shared_lanes=false")
    paths = {record_path(apply_overrides(TINY, [setting]), MACHINE) for setting in settings}
    assert len(paths) == len(settings)


def test_explicit_settings_take_precedence_and_a_record_for_others_is_ignored(logged: list[str]) -> None:
    keep(TINY, lanes=1, slots=9)
    open_lanes = with_tuned_settings(TINY, MACHINE)
    assert (open_lanes.lanes, open_lanes.slots) == (1, 9)
    given = apply_overrides(TINY, ["lanes=4"])
    assert with_tuned_settings(given, MACHINE) == given
    assert "measured without lanes=4" in logged[-1]
    _, choice = keep(given, given, lanes=4, slots=7)
    assert with_tuned_settings(given, MACHINE).slots == choice.slots == 7


@pytest.mark.parametrize(
    "override",
    ["model.vocab_size=65", "model.context=8", "model.channels=10", "batch_size=8", "gradient_accumulation_steps=2",
     "delay=0", "model.architecture=llama", "train.freeze=wte", "embedding.layout=primes"],
)  # fmt: skip
def test_a_record_is_for_one_model_batch_and_delay(override: str) -> None:
    keep(TINY, slots=9)
    other = apply_overrides(TINY, [override])
    assert with_tuned_settings(other, MACHINE) == other
    assert with_tuned_settings(apply_overrides(TINY, ["seed=5", "optimizer.lr=0.1"]), MACHINE).slots == 9


def test_models_of_the_llama_family_have_their_own_records() -> None:
    base = apply_overrides(TINY, ["model.architecture=llama"])
    changes = ("model.kv_heads=1", "model.head_size=6", "model.mlp_width=9", "model.tied=true")
    paths = {record_path(apply_overrides(base, [change]), MACHINE) for change in changes}
    assert len(paths | {record_path(base, MACHINE)}) == 1 + len(changes)


def test_a_record_is_for_one_machine_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(TINY, slots=9)
    assert with_tuned_settings(TINY, replace(MACHINE, logical_cores=97)) == TINY
    monkeypatch.setattr(tuning_record, "version", lambda name: "97.0")
    assert with_tuned_settings(TINY, MACHINE) == TINY


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"choice": 1}', b"[]"])
def test_a_damaged_record_is_named_and_ignored(content: bytes, logged: list[str]) -> None:
    path, _ = keep(TINY, slots=9)
    path.write_bytes(content)
    assert with_tuned_settings(TINY, MACHINE) == TINY
    assert str(path) in logged[-1]


def test_a_record_with_invalid_values_is_rejected_by_name() -> None:
    path, _ = keep(TINY, slots=9)
    path.write_bytes(path.read_bytes().replace(b'"slots": 9', b'"slots": -9'))
    with pytest.raises(ValueError, match="slots"):
        resolve(apply_overrides(with_tuned_settings(TINY, MACHINE), ["model.vocab_size=65"]), 2)


def test_explicit_settings_stay_when_tuned_ones_are_filled_in() -> None:
    config = apply_overrides(load_config("nanogpt-cpu"), ["lanes=3", "threads.update=5", "gemm_backend=blas"])
    assert explicit_settings(config) == {"lanes": 3, "update": 5, "gemm": Gemm.BLAS}
    filled = with_defaults(config, TUNED)
    assert explicit_settings(filled) == {
        **explicit_settings(with_defaults(load_config("nanogpt-cpu"), TUNED)),
        **explicit_settings(config),
    }
    assert filled.threads.embed is None
