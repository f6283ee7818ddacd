"""Files that commit 133a6fa wrote, before settings were renamed: a run with its checkpoint, and a tuning record."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import Checkpoint, latest_checkpoint
from threadloom.stages.config import Config, Gemm, MatmulPrecision, ResolvedConfig
from threadloom.stages.machine import detect
from threadloom.stages.models import parameter_shapes
from threadloom.stages.resolve import (
    TuningRecord,
    apply_overrides,
    load_config,
    record_path,
    resolve,
    resolved_from_json,
    to_json,
    trajectory,
    tuning_record,
    with_tuned_settings,
)
from threadloom.stages.run.session import train
from threadloom.stages.storage import RunMode

FIXTURES = Path(__file__).parent / "fixtures"
RUN = FIXTURES / "run"
OLD, NEW = ("spare_banks", "gemm", "matmul"), ("extra_banks", "gemm_backend", "float32_matmul_precision")

ADDED = {
    "recompute": False,
    "pictures": True,
    "init": "",
    "grown_from": "",
    "embedding": {
        "layout": "plain",
        "share": 0.5,
        "periods": [10, 100, 1000],
        "moduli": [],
        "own_rows": 0,
        "lattice": "none",
        "lattice_bits": 4.0,
        "lattice_scale": 0.0,
        "rank": 0,
        "alpha": 0.0,
        "bands": [],
        "basis": "random",
    },
    "guard": {"action": "off", "deviations": 6.0, "window": 128, "most": 10},
    "dropout": {"embedding": 0.0, "residual": 0.0, "attention": 0.0},
    "loss": {"label_smoothing": 0.0, "z_loss": 0.0},
    "noise_scale": False,
    "train": {"only": [], "freeze": []},
    "delay_correction": "none",
    "lora": {"rank": 0, "alpha": 16.0, "rslora": False, "targets": [], "dropout": 0.0, "save": [], "init": ""},
}
"""Settings that came later, with their defaults."""
ADDED_TO_SECTIONS = {
    "optimizer": {
        "lead": 0.0,
        "forecast_lead": 0.0,
        "synchronous_beta1": 0.9,
        "rotation": 0,
        "clip_value": 0.0,
        "groups": [],
        "ema": 0.0,
    },
    "evaluation": {"gcd_loss": False, "patience": 0, "sets": {}},
    "checkpoint": {"every": 0, "best": False},
    "schedule": {
        "delay_warmup": 0,
        "synchronous": 0,
        "rewarm": 0,
        "rewarm_from": 0,
        "context_warmup": 0,
        "context_start": 0,
        "cooldown_share": 0.2,
        "cooldown": "1-sqrt",
    },
}
ADDED_DATA = {
    "tokenizer_path": "", "special_tokens": "tokens", "token_order": "id", "digits": "plain", "digit_places": 40,
    "digit_offset": 0, "shuffle": "drawn", "packing": "windows", "borders": "ignored", "field": "text",
    "invalid": "refuse", "conversations": None, "chat_template": "", "mixture": [], "validation_text": [],
    "prepared": "",
}  # fmt: skip


def saved() -> ResolvedConfig:
    return resolved_from_json((RUN / "config.json").read_bytes())


def test_a_saved_configuration_loads_and_resolves_to_itself() -> None:
    raw = json.loads((RUN / "config.json").read_text())
    assert set(OLD) <= raw.keys()
    config = saved()
    assert (config.extra_banks, config.gemm_backend) == (1, Gemm.NUMBA)
    assert config.float32_matmul_precision is MatmulPrecision.HIGHEST
    assert resolve(load_config(RUN), cores=5) == config
    renamed = {dict(zip(OLD, NEW, strict=True)).get(name, name): value for name, value in raw.items()}
    renamed["model"] = {"architecture": "gpt2"} | raw["model"]
    sections = {"threads": raw["threads"] | {"total": 0, "team": 1, "control": False}, "data": raw["data"] | ADDED_DATA}
    sections |= {name: raw[name] | added for name, added in ADDED_TO_SECTIONS.items()}
    assert json.loads(to_json(config)) == renamed | ADDED | sections
    assert list(json.loads(to_json(config))) == list(Config.__struct_fields__)


def test_earlier_names_of_settings_are_accepted_by_set() -> None:
    config = apply_overrides(saved(), ["spare_banks=3", "gemm=blas", "matmul=high"])
    assert (config.extra_banks, config.gemm_backend) == (3, Gemm.BLAS)
    assert config.float32_matmul_precision is MatmulPrecision.HIGH


def test_a_file_with_both_names_of_a_setting_is_rejected() -> None:
    raw = json.loads((RUN / "config.json").read_text()) | {"extra_banks": 2}
    with pytest.raises(ValueError, match="unknown setting 'spare_banks'"):
        resolved_from_json(json.dumps(raw))


def test_a_checkpoint_is_opened_and_read() -> None:
    path = latest_checkpoint(RUN / "checkpoints")
    assert path is not None
    checkpoint = Checkpoint.open(path)
    assert (checkpoint.step, checkpoint.delay, list(checkpoint.versions)) == (2, 1, [1, 2])
    shapes = parameter_shapes(saved().model.geometry())
    arenas = [Arena(shapes) for _ in range(4)]
    for version, arena in zip(checkpoint.versions, arenas[:2], strict=True):
        checkpoint.read_weights(version, arena)
    checkpoint.read_optimizer(dict(zip("mv", arenas[2:], strict=True)))
    assert all(arena.flat.any() for arena in arenas)


def test_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the configuration names its text relative to the working directory
    run = tmp_path / "run"
    config = apply_overrides(load_config(run), ["steps=3"])
    outcome = train(config, run, RunMode.RESUME, tuned=False)
    assert outcome.step == 3
    assert trajectory(outcome.config) == trajectory(saved())


def test_a_tuning_record_is_found_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning_record, "_package_version", lambda: "0.1.0")
    machine = detect()
    model = msgspec.structs.replace(saved().model, vocab_size=None)
    asked = apply_overrides(saved(), [f"{key}=null" for key in ("micro_batch", "lanes", "slots", "channel_capacity")])
    threads = [f"threads.{name}=null" for name in ("forward", "backward", "reduce", "update", "blas")]
    config = msgspec.structs.replace(apply_overrides(asked, [*threads, "shared_lanes=null"]), model=model)
    path = record_path(config, machine, {"gemm": Gemm.NUMBA})
    assert path.name == "vtextt8l1h1c4-b4x1-delay1-gemmnumba-0.1.0.json"
    path.parent.mkdir(parents=True)
    shutil.copy(FIXTURES / "tuned.json", path)
    record = msgspec.json.decode(path.read_bytes(), type=TuningRecord)
    assert record.choice.gemm is Gemm.NUMBA
    tuned = with_tuned_settings(config, machine)
    assert (tuned.micro_batch, tuned.lanes, tuned.slots, tuned.threads.backward) == (4, 1, 7, 1)
