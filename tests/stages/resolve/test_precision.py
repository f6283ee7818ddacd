"""The choice of the precision, from invented speeds; configurations and resumed runs keep their choice."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tests.stages.support import STORY, TINY, story
from threadloom.kernels import GemmBackend, blas_info, gemm_backend, simd
from threadloom.kernels.simd import features as lowp_features
from threadloom.kernels.simd.features import LowPrecisionInfo
from threadloom.stages import speeds
from threadloom.stages.checkpoint import Checkpoint, latest_checkpoint
from threadloom.stages.config import ConfigError, Gemm, LossScaling
from threadloom.stages.config.settings import Config, MatmulPrecision, Precision
from threadloom.stages.resolve import precision
from threadloom.stages.resolve.loading import apply_overrides, load_config, resolved_from_json, to_json
from threadloom.stages.resolve.precision import (
    ALLOW_SLOW,
    BF16X3_GRADE,
    choose_precision,
    choose_precision_and_warn,
    choose_precision_here,
    gemm_description,
    is_precision_open,
)
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.trajectory_settings import trajectory
from threadloom.stages.run import saved_config, train
from threadloom.stages.speeds import Speeds
from threadloom.stages.storage import RunDirectory, RunMode

NOTHING: dict[str, bool] = {}
AVX2 = {"avx2": True, "f16c": True}
DOT = {**AVX2, "avx512f": True, "avx512bf16": True}
TILES = {**DOT, "amx-tile": True, "amx-bf16": True}


def info_of(features: dict[str, bool], permission: bool = True) -> LowPrecisionInfo:
    return lowp_features.choose(features, lambda: permission)


OLD, PLAIN, ZEN, XEON = info_of(NOTHING), info_of(AVX2), info_of(DOT), info_of(TILES)
SPEEDS = {
    "SSE2 only": (OLD, Speeds(float32=20, bf16=14, bf16x3=4.5, fp16=6)),
    "AVX2": (PLAIN, Speeds(float32=100, bf16=50, bf16x3=20, fp16=80)),
    "AVX-512": (ZEN, Speeds(float32=240, bf16=520, bf16x3=170, fp16=220)),
    "AMX": (XEON, Speeds(float32=200, bf16=1200, bf16x3=350, fp16=180)),
}
AUTO, FLOAT32, BF16, BF16X3, FP16 = (Precision(name) for name in ("auto", "float32", "bf16", "bf16x3", "fp16"))
HIGHEST, HIGH = MatmulPrecision.HIGHEST, MatmulPrecision.HIGH


@pytest.mark.parametrize(
    ("machine", "asked", "matmul", "chosen"),
    [
        ("SSE2 only", AUTO, HIGHEST, FLOAT32),
        ("SSE2 only", AUTO, HIGH, FLOAT32),
        ("SSE2 only", FLOAT32, HIGH, FLOAT32),
        ("AVX2", AUTO, HIGHEST, FLOAT32),
        ("AVX2", AUTO, HIGH, FLOAT32),
        ("AVX2", FLOAT32, HIGH, FLOAT32),
        ("AVX-512", AUTO, HIGHEST, BF16),
        ("AVX-512", AUTO, HIGH, BF16),
        ("AVX-512", FLOAT32, HIGH, FLOAT32),
        ("AVX-512", FLOAT32, HIGHEST, FLOAT32),
        ("AMX", AUTO, HIGHEST, BF16),
        ("AMX", FLOAT32, HIGH, BF16X3),
        ("AMX", FLOAT32, HIGHEST, FLOAT32),
    ],
)
def test_auto_chooses_the_fastest_accurate_precision(
    machine: str, asked: Precision, matmul: MatmulPrecision, chosen: Precision
) -> None:
    info, figures = SPEEDS[machine]
    choice = choose_precision(asked, matmul, figures, info)
    assert choice.precision is chosen
    assert choice.warning is None
    if (asked, matmul) != (FLOAT32, HIGHEST):
        assert info.reason in choice.reason
        tried = BF16 if asked is AUTO else BF16X3
        assert f"{figures.of(tried):,.0f} to {figures.float32:,.0f} GFLOP/s on one core" in choice.reason


@pytest.mark.parametrize(
    ("figures", "matmul", "chosen"),
    [
        (Speeds(float32=100, bf16=115), HIGHEST, BF16),
        (Speeds(float32=100, bf16=114), HIGHEST, FLOAT32),
        (Speeds(float32=100, bf16=114, bf16x3=110), HIGHEST, FLOAT32),
        (Speeds(float32=100, bf16=114, bf16x3=110), HIGH, BF16X3),
        (Speeds(float32=100, bf16=114, bf16x3=109), HIGH, FLOAT32),
        (Speeds(float32=100, fp16=500), HIGH, FLOAT32),  # its range of exponents is too small for an automatic choice
        (Speeds(float32=100), HIGH, FLOAT32),
        (None, HIGH, FLOAT32),
    ],
)
def test_thresholds_of_auto(figures: Speeds | None, matmul: MatmulPrecision, chosen: Precision) -> None:
    assert choose_precision(AUTO, matmul, figures, ZEN).precision is chosen


@pytest.mark.parametrize("matmul", MatmulPrecision)
@pytest.mark.parametrize(
    ("machine", "asked", "faster"),
    [
        ("SSE2 only", BF16, "float32"),
        ("AVX2", BF16, "float32"),
        ("AVX2", FP16, "float32"),
        ("AVX-512", BF16, None),
        ("AVX-512", BF16X3, "float32"),
        ("AVX-512", FP16, "float32"),
        ("AMX", BF16, None),
        ("AMX", BF16X3, None),
        ("AMX", FP16, "bf16x3"),
    ],
)
def test_a_slower_explicit_precision_is_kept_with_a_warning(
    machine: str, asked: Precision, faster: str | None, matmul: MatmulPrecision
) -> None:
    info, figures = SPEEDS[machine]
    choice = choose_precision(asked, matmul, figures, info)
    assert choice.precision is asked
    assert f"{figures.of(asked):,.0f} to {figures.float32:,.0f} GFLOP/s" in choice.reason
    if faster is None:
        assert choice.warning is None
    else:
        assert choice.warning is not None
        for words in (f"precision={asked.value} is slower here", "GFLOP/s", "Hint: ", f"set precision={faster}"):
            assert words in choice.warning


@pytest.mark.parametrize(("machine", "asked"), [("SSE2 only", BF16X3), ("SSE2 only", FP16), ("AVX2", BF16X3)])
def test_an_emulated_precision_is_rejected_unless_allowed(machine: str, asked: Precision) -> None:
    info, figures = SPEEDS[machine]
    with pytest.raises(ConfigError, match=f"{asked.value} is 0.* times as fast .*{ALLOW_SLOW}=1") as caught:
        choose_precision(asked, HIGHEST, figures, info)
    assert caught.value.subject == "precision"
    allowed = choose_precision(asked, HIGHEST, figures, info, allow_slow=True)
    assert allowed.precision is asked
    assert allowed.warning is not None


def test_unknown_speeds_cause_no_warning() -> None:
    for asked, figures in itertools.product((BF16, BF16X3, FP16), (None, Speeds(float32=100))):
        choice = choose_precision(asked, HIGH, figures, OLD)
        path = "float16 is converted by integer arithmetic" if asked is FP16 else OLD.reason
        assert choice.reason.startswith(f"as asked; its speed here was not measured; {path}")
        assert (choice.precision, choice.warning) == (asked, None)


def test_the_reason_names_the_method() -> None:
    for info, figures in SPEEDS.values():
        for asked in (BF16, BF16X3):
            assert choose_precision(asked, HIGHEST, figures, info, allow_slow=True).reason.endswith(
                f"core); {info.reason}"
            )
        reason = choose_precision(FP16, HIGHEST, figures, info, allow_slow=True).reason
        assert ("integer arithmetic" if info is OLD else "converted by an instruction") in reason


def test_the_hint_for_a_slow_bf16x3_does_not_suggest_auto() -> None:
    info, figures = SPEEDS["AVX-512"]
    warning = choose_precision(BF16X3, HIGHEST, figures, info).warning
    assert warning is not None
    assert warning.endswith("Hint: set precision=float32.")
    with pytest.raises(ConfigError, match=f"set precision=float32; or set {ALLOW_SLOW}=1"):
        choose_precision(BF16X3, HIGHEST, SPEEDS["AVX2"][1], PLAIN)


@pytest.mark.parametrize(
    ("machine", "bf16"), [("AMX", "AMX tiles"), ("AVX-512", "AVX-512 BF16"), ("AVX2", "bfloat16 upcast to float32")]
)
def test_gemm_descriptions(on_machine: Callable[[str], None], machine: str, bf16: str) -> None:
    on_machine(machine)
    with gemm_backend(GemmBackend.NUMBA):
        said = {name: gemm_description(Precision(name)) for name in ("float32", "bf16", "bf16x3", "fp16")}
    assert said == {
        "float32": "Numba's kernel",
        "bf16": bf16,
        "bf16x3": f"three of bfloat16, {BF16X3_GRADE}: {bf16}",
        "fp16": "Numba's kernel",
    }


@pytest.mark.parametrize(
    ("features", "words"), [(NOTHING, "integer arithmetic, as the processor has no F16C"), (AVX2, "an instruction")]
)
def test_the_warning_names_the_conversion_of_float16(features: dict[str, bool], words: str) -> None:
    warning = choose_precision(FP16, HIGHEST, Speeds(float32=100, fp16=80), info_of(features)).warning
    assert warning is not None
    assert words in warning


def test_amx_without_permission_is_named() -> None:
    choice = choose_precision(AUTO, HIGHEST, Speeds(float32=200, bf16=210), info_of(TILES, permission=False))
    assert choice.precision is FLOAT32
    assert "the system does not permit its use" in choice.reason


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that replaces the features and speeds of this machine by those of one above."""

    def become(name: str) -> None:
        info, figures = SPEEDS[name]
        monkeypatch.setattr(speeds, "speeds_here", lambda: figures)
        monkeypatch.setattr(simd, "low_precision_info", lambda: info)

    monkeypatch.setattr(precision, "speed_matters", lambda: True)
    monkeypatch.delenv(ALLOW_SLOW, raising=False)
    return become


def tiny(*overrides: str) -> Config:
    return apply_overrides(TINY, overrides)


@pytest.mark.parametrize(
    ("machine", "overrides", "chosen", "matmul"),
    [
        ("AMX", ["precision=auto"], BF16, HIGHEST),
        ("AMX", ["precision=auto", "float32_matmul_precision=high"], BF16, HIGH),
        ("AMX", ["float32_matmul_precision=high"], BF16X3, HIGH),
        ("AVX-512", ["float32_matmul_precision=high"], FLOAT32, HIGHEST),
        ("AVX2", ["precision=auto", "float32_matmul_precision=high"], FLOAT32, HIGHEST),
        ("AVX2", ["precision=bf16", "float32_matmul_precision=high"], BF16, HIGH),
        ("SSE2 only", ["precision=bf16x3"], BF16X3, HIGHEST),
        ("SSE2 only", [], FLOAT32, HIGHEST),
    ],
)
def test_a_resolved_precision_is_kept_on_every_machine(
    on_machine: Callable[[str], None], machine: str, overrides: list[str], chosen: Precision, matmul: MatmulPrecision
) -> None:
    on_machine(machine)
    resolved = resolve(tiny(*overrides), 2)
    assert (resolved.precision, resolved.float32_matmul_precision) == (chosen, matmul)
    assert not is_precision_open(resolved)
    assert resolved.loss_scale.kind is LossScaling.NONE
    for other in SPEEDS:
        on_machine(other)
        assert resolve(resolved, 3) == resolved
        assert resolved_from_json(to_json(resolved)) == resolved


def test_plain_float32_is_resolved_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Speeds:
        raise AssertionError("measured for nothing")

    monkeypatch.setattr(speeds, "speeds_here", never)
    assert resolve(tiny(), 2).precision is FLOAT32
    assert choose_precision_here(tiny()).warning is None
    for name in ("bf16", "fp16", "bf16x3"):
        assert resolve(tiny(f"precision={name}"), 2).precision is Precision(name)


def test_the_reason_for_float32_mentions_faster_instructions(on_machine: Callable[[str], None]) -> None:
    on_machine("AMX")
    assert choose_precision_here(tiny()).reason == f"as asked; precision=auto may be faster: {XEON.reason}"
    on_machine("AVX2")
    assert choose_precision_here(tiny()).reason == "as asked"


@pytest.mark.parametrize(("value", "allows"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_the_environment_can_allow_slow_precisions(
    on_machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, value: str, allows: bool
) -> None:
    on_machine("AVX2")
    monkeypatch.setenv(ALLOW_SLOW, value)
    if allows:
        assert choose_precision_here(tiny("precision=bf16x3")).warning is not None
    else:
        with pytest.raises(ConfigError):
            choose_precision_here(tiny("precision=bf16x3"))


def test_with_the_compiler_off_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "speed_matters", lambda: False)
    monkeypatch.setattr(speeds, "speeds_here", lambda: pytest.fail("measured"))
    assert resolve(tiny("precision=auto"), 2).precision is FLOAT32
    assert choose_precision_here(tiny("precision=bf16x3")).warning is None


def test_fp16_scales_its_loss() -> None:
    assert resolve(tiny("precision=fp16"), 2).loss_scale.kind is LossScaling.DYNAMIC
    assert resolve(tiny("precision=fp16", "loss_scale.kind=static"), 2).loss_scale.kind is LossScaling.STATIC


def test_the_backend_is_changed_for_the_run_only() -> None:
    before = blas_info().backend
    for name, gemm, backend in (
        ("bf16x3", before.value, GemmBackend.BF16X3),
        ("bf16", "numba", before),
        ("bf16", "blas", before),
        ("fp16", "numba", GemmBackend.NUMBA),
    ):
        with gemm_settings(resolve(tiny(f"precision={name}", f"gemm_backend={gemm}"), 2)):
            assert blas_info().backend is backend
            assert resolve(tiny(), 2).gemm_backend in (Gemm.NUMBA, Gemm.BLAS)
    assert blas_info().backend is before


def test_the_precision_decides_the_weights() -> None:
    assert trajectory(resolve(tiny("precision=bf16"), 2)) != trajectory(resolve(tiny(), 2))


def test_shipped_configurations_resolve_with_auto(on_machine: Callable[[str], None]) -> None:
    on_machine("AMX")
    config = apply_overrides(load_config("small"), ["precision=auto"])
    assert resolve(config, 2).precision is BF16


@pytest.fixture
def said() -> Any:
    """Return the list of logged lines, as level and text."""
    lines: list[tuple[str, str]] = []
    handle = logger.add(lambda message: lines.append((message.record["level"].name, message.record["message"])))
    yield lines
    logger.remove(handle)


@STORY
def test_a_resumed_run_keeps_its_precision(
    tmp_path: Path, on_machine: Callable[[str], None], said: list[tuple[str, str]]
) -> None:
    out = tmp_path / "run"
    asked = story(tmp_path, "precision=auto", "steps=2", "schedule.kind=constant")
    on_machine("AVX2")
    train(asked, out)
    assert saved_config(out).precision is FLOAT32
    (line,) = [text for _, text in said if text.startswith("precision: ")]
    assert line.startswith("precision: float32; bf16 is 0.50 times as fast as float32 here (50 to 100 GFLOP/s")
    said.clear()
    on_machine("AMX")
    train(apply_overrides(asked, ["steps=3"]), out, RunMode.RESUME)
    assert saved_config(out).precision is FLOAT32
    assert "precision: float32; as asked" in "\n".join(text for _, text in said)
    with pytest.raises(ConfigError, match=r"^precision: .*saved 'float32', now 'bf16'"):
        train(apply_overrides(asked, ["steps=4", "precision=bf16"]), out, RunMode.RESUME)


@STORY
def test_a_slow_precision_is_rejected_before_a_run_starts_and_only_warned_about_if_fast_enough(
    tmp_path: Path, on_machine: Callable[[str], None], said: list[tuple[str, str]]
) -> None:
    out = tmp_path / "run"
    on_machine("AVX2")
    with pytest.raises(ConfigError, match=r"^precision: expected one that is at least a third as fast"):
        train(story(tmp_path, "precision=bf16x3"), out)
    assert not out.exists()
    train(story(tmp_path, "precision=bf16", "steps=1"), out)
    with pytest.raises(ConfigError, match=r"^precision: expected one that is at least a third as fast"):
        train(story(tmp_path, "precision=bf16x3"), out, RunMode.OVERWRITE)
    kept = latest_checkpoint(RunDirectory(out).checkpoints)
    assert kept is not None
    assert Checkpoint.open(kept).step == 1
    assert saved_config(out).precision is BF16
    assert any(text.endswith("; GEMM by bfloat16 upcast to float32") for _, text in said)
    warned = [text for level, text in said if level == "WARNING"]
    assert len(warned) == 1
    assert warned[0].startswith("precision=bf16 is slower here than float32")


def test_measurements_warn_about_a_slow_precision(
    on_machine: Callable[[str], None], said: list[tuple[str, str]]
) -> None:
    on_machine("AVX2")
    assert choose_precision_and_warn(tiny("precision=bf16x3")).precision is BF16X3
    assert [text.partition(" is slower")[0] for level, text in said if level == "WARNING"] == ["precision=bf16x3"]
    said.clear()
    assert choose_precision_and_warn(tiny("precision=auto")).precision is FLOAT32
    assert said == []


def test_a_choice_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        choose_precision(AUTO, HIGH, None, ZEN).precision = BF16  # type: ignore[misc]
