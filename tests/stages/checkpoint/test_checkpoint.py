"""Checkpoints: exact round trips, retention, detection of damage."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.stages.checkpoint.checkpoint_writer import GEOMETRY, arena_of, assert_holds, assert_same, empty, state_of
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import (
    Checkpoint,
    TrainingState,
    kept_versions,
    latest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from threadloom.stages.checkpoint.huggingface import GENERATION_FILE
from threadloom.stages.checkpoint.manifest import MANIFEST_FILE, CheckpointManifest, encode_manifest
from threadloom.stages.checkpoint.model_reader import load_model
from threadloom.stages.checkpoint.safetensors_format import OPTIMIZER_FILE, VERSIONS_FILE
from threadloom.stages.models import Geometry
from threadloom.stages.storage import CONFIG_FILE, MODEL_FILE, CheckpointError, FileDigest, finished_checkpoints

FILES = (MODEL_FILE, CONFIG_FILE, OPTIMIZER_FILE, VERSIONS_FILE, MANIFEST_FILE, "tokenizer.json")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"characters": "abc"}')
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that has all of the possible files."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tokenizer.json").write_text('{"characters": "abc"}')
    return save_checkpoint(folder / "checkpoints", state_of(7, 2), folder / "tokenizer.json", 3)


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "delay"), [(0, 0), (5, 0), (0, 2), (1, 2), (2, 2), (9, 3)])
def test_the_state_is_read_back_bit_for_bit(tmp_path: Path, tokenizer: Path, step: int, delay: int) -> None:
    state = state_of(step, delay)
    path = save_checkpoint(tmp_path / "run" / "checkpoints", state, tokenizer, 2)
    assert path == tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
    assert_holds(path, state)
    copy = Checkpoint.open(path).tokenizer
    assert copy is not None
    assert copy.read_bytes() == tokenizer.read_bytes()
    assert (path / VERSIONS_FILE).exists() == (len(kept_versions(step, delay)) > 1)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def digest_of(arena: Arena) -> str:
    """Return the beginning of the SHA-256 of all tensors, without padding."""
    return hashlib.sha256(b"".join(view.tobytes() for view in arena.values())).hexdigest()[:16]


def test_a_checkpoint_of_an_earlier_release_is_read_bit_for_bit() -> None:
    """Commit 133a6fa wrote it: float16 with loss scaling and delay 2, after four updates; it also gave the digests."""
    found = Checkpoint.open(Path(__file__).parent / "fixtures" / "step-000004")
    assert (found.step, found.delay, found.geometry) == (4, 2, Geometry(4, 4, 1, 1, 4))
    digests = {}
    for version in found.versions:
        found.read_weights(version, weights := empty(found.geometry))
        digests[version] = digest_of(weights)
    assert digests == {2: "ad1376580f8c4423", 3: "67b02e6164f241f4", 4: "8abe7e5b9f3172a7"}
    m, v = empty(found.geometry), empty(found.geometry)
    found.read_optimizer({"m": m, "v": v})
    assert (digest_of(m), digest_of(v)) == ("ac59fecd1c701009", "7c3e2ea9673f3fe1")
    assert [(version, state.scale) for version, state in found.scalers.items()] == [(k, 1024.0) for k in (2, 3, 4)]
    assert found.tokenizer is not None
    assert json.loads(found.tokenizer.read_text())


def test_the_model_opens_in_hugging_faces_layout(whole: Path) -> None:
    geometry, weights = load_model(whole)
    assert geometry == GEOMETRY
    assert_same(weights, arena_of(7))


def test_versions_kept_for_a_delay() -> None:
    assert [list(kept_versions(step, 2)) for step in range(5)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert list(kept_versions(4, 0)) == [4]


def test_a_state_must_be_complete() -> None:
    state = state_of(5, 1)
    with pytest.raises(ValueError, match=r"step 5 with delay 1: expected versions \[4, 5\], got \[5\]"):
        TrainingState(5, 1, {5: state.versions[5]}, state.optimizer, {}, GEOMETRY)
    other = Geometry(vocabulary=14, context=5, layers=2, heads=2, channels=4)
    with pytest.raises(ValueError, match="the tensors of v do not have the shapes"):
        TrainingState(5, 1, state.versions, {**state.optimizer, "v": empty(other)}, {}, GEOMETRY)


def test_arguments_that_cannot_be_saved_leave_nothing(tmp_path: Path) -> None:
    state = state_of(1, 0)
    with pytest.raises(ValueError, match="keep: expected the number of checkpoints to keep, or 0 for all, got -1"):
        save_checkpoint(tmp_path / "c", state, None, -1)
    with pytest.raises(ValueError, match=r"cannot be named model\.safetensors"):
        save_checkpoint(tmp_path / "c", state, tmp_path / MODEL_FILE, 1)
    for config in ({"lr": float("nan")}, {"path": tmp_path}):
        broken = TrainingState(1, 0, state.versions, state.optimizer, config, GEOMETRY)
        with pytest.raises((ValueError, TypeError)):
            save_checkpoint(tmp_path / "c", broken, None, 1)
    assert not (tmp_path / "c").exists()


def test_files_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        events.append(("sync", re.sub(r"partial-.*?(/|$)", r"partial\1", path)))
        fsync(handle)

    def recorded_rename(path: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    folder = tmp_path / "c"
    save_checkpoint(folder, state_of(1, 1), None, 1)
    partial = str(folder / ".step-000001.partial")
    names = (MODEL_FILE, CONFIG_FILE, GENERATION_FILE, OPTIMIZER_FILE, VERSIONS_FILE, MANIFEST_FILE)
    assert events == [
        ("sync", str(tmp_path)),  # the directory was created
        *(("sync", f"{partial}/{name}") for name in names),
        ("sync", partial),
        ("rename", "step-000001"),
        ("sync", str(folder)),
    ]


# --- retention -------------------------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4, 999_999, 1_000_000):
        save_checkpoint(tmp_path, state_of(step, 1), None, 3)
    assert [path.name for path in finished_checkpoints(tmp_path)] == ["step-000030", "step-999999", "step-1000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_one_just_written_is_never_removed(tmp_path: Path) -> None:
    for step in (8, 9, 3):
        save_checkpoint(tmp_path, state_of(step, 0), None, 2)
    assert [path.name for path in finished_checkpoints(tmp_path)] == ["step-000003", "step-000008", "step-000009"]


def test_a_second_checkpoint_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(4, 1), None, 2)
    path = save_checkpoint(tmp_path, state_of(4, 1, salt=1), None, 2)
    assert_holds(path, state_of(4, 1, salt=1))
    assert list(tmp_path.iterdir()) == [path]


def test_all_are_kept_if_asked(tmp_path: Path) -> None:
    for step in range(4):
        save_checkpoint(tmp_path, state_of(step, 0), None, 0)
    assert len(finished_checkpoints(tmp_path)) == 4


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    (tmp_path / "step-000001").touch()
    (tmp_path / "step-1").mkdir()
    assert latest_checkpoint(tmp_path) is None
    assert remove_leftovers(tmp_path) == []


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_is_found(whole: Path, name: str, data: st.DataObject) -> None:
    path = whole / name
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "place")
    bit = data.draw(st.integers(0, 7), "bit")
    original = bytes(content)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointError, match=r"Hint: .*(restore|open it with)") as caught:
            Checkpoint.open(whole)
        assert caught.value.path == path
    finally:
        path.write_bytes(original)
    Checkpoint.open(whole)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_is_found(whole: Path, name: str, data: st.DataObject) -> None:
    path = whole / name
    original = path.read_bytes()
    path.write_bytes(original[: data.draw(st.integers(0, len(original) - 1), "kept")])
    try:
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            Checkpoint.open(whole)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / whole.name))
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: expected .*no such file.*start a new run"):
        Checkpoint.open(copy)
    if name in (OPTIMIZER_FILE, VERSIONS_FILE):
        sampled = Checkpoint.open(copy, for_training=False)
        weights = empty()
        sampled.read_weights(sampled.step, weights)
        assert_same(weights, arena_of(7))


def test_the_hint_names_the_previous_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state_of(step, 0), None, 2)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    (newest / MODEL_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"truncated.*remove .*step-000002 to resume from step-000001"):
        Checkpoint.open(newest)
    assert_holds(tmp_path / "step-000001", state_of(1, 0))


def forge(whole: Path, folder: Path, **changes: Any) -> Path:
    """Copy a checkpoint with a changed manifest and its correct checksum."""
    copy = Path(shutil.copytree(whole, folder / whole.name))
    content = json.loads((copy / MANIFEST_FILE).read_text())
    content["files"] = {name: FileDigest(**record) for name, record in content["files"].items()}
    manifest = CheckpointManifest(**(content | {"checksum": "0" * 64} | changes))
    (copy / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return copy


def test_an_unknown_format_is_refused(whole: Path, tmp_path: Path) -> None:
    path = forge(whole, tmp_path, format=4)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of format 1 or 2 or 3, got format 4.*release"):
        Checkpoint.open(path)


def test_file_names_in_a_forged_manifest_cannot_leave_the_directory(whole: Path, tmp_path: Path) -> None:
    record = FileDigest("0" * 64, 0)
    for number, name in enumerate(("../secret", "/etc/passwd", "..", "templates/../../secret", "templates/")):
        path = forge(whole, tmp_path / str(number), files={name: record})
        with pytest.raises(CheckpointError, match="names of files in the directory"):
            Checkpoint.open(path)
    path = forge(whole, tmp_path / "none", files={}, tokenizer=None)
    with pytest.raises(CheckpointError, match="expected a record of 4 files"):
        Checkpoint.open(path)
    path = forge(whole, tmp_path / "unrecorded", tokenizer="other.json")
    with pytest.raises(CheckpointError, match="record of the tokenizer"):
        Checkpoint.open(path)


def test_a_configuration_with_64_zeros_does_not_confuse_the_checksum(tmp_path: Path) -> None:
    state = state_of(1, 0)
    config = {"a": "0" * 64, "checksum": "0" * 64}
    state = TrainingState(1, 0, state.versions, state.optimizer, config, GEOMETRY)
    assert_holds(save_checkpoint(tmp_path, state, None, 1), state)


def test_another_geometry_or_version_is_refused(whole: Path) -> None:
    found = Checkpoint.open(whole)
    other = Geometry(vocabulary=13, context=5, layers=2, heads=2, channels=8)
    refusal = r"wte: \(13, 8\).*configuration is of another model"
    with pytest.raises(CheckpointError, match=refusal):
        found.read_weights(7, empty(other))
    with pytest.raises(CheckpointError, match=refusal):
        found.read_optimizer({"m": empty(), "v": empty(other)})
    with pytest.raises(CheckpointError, match=r"expected version 4 .*got versions \[5, 6, 7\].*resume with delay=2"):
        found.read_weights(4, empty())
