"""The peer llm.c: its checkpoint read back, its errors, and with its sources (LLM_C) its losses."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from benchmarks import agreement, llm_c, throughput
from benchmarks.gpt2_inputs import random_weights, token_batches
from benchmarks.llm_c import LlmCError, build_library, find_compiler, find_source, write_checkpoint
from benchmarks.model_sizes import Gpt2Sizes
from benchmarks.peers import without_clip_and_decay
from benchmarks.protocol import Side, SideWorker, TrainingSizes
from benchmarks.throughput import sizes_of
from tests import reference
from threadloom.stages.config import Config, Gpt2Config, LlamaConfig
from threadloom.stages.resolve import to_json

SIZES = Gpt2Sizes(vocabulary=13, context=7, layers=2, heads=3, channels=9)
TINY_MODEL = Gpt2Config(vocab_size=17, context=6, layers=2, heads=2, channels=8)
TINY = Config(name="tiny", model=TINY_MODEL, batch_size=4, steps=3)
CLONE = os.environ.get("LLM_C")
needs_clone = pytest.mark.skipif(CLONE is None, reason="the environment variable LLM_C names no clone of llm.c")


def rounded_weights() -> Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    weights = reference.random_tensors(np.random.default_rng(1), 13, 7, 2, 9)
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in weights.items()}


def test_a_checkpoint_has_the_layout_of_llm_c(tmp_path: Path) -> None:
    weights, c, n = rounded_weights(), 9, 2
    file = tmp_path / "gpt2.bin"
    write_checkpoint(file, weights, SIZES)
    content = file.read_bytes()
    header = np.frombuffer(content[:1024], "<i4")
    assert header[:8].tolist() == [20240326, 3, 7, 13, 2, 3, 9, 128]
    assert not header[8:].any()
    # The fields of `ParameterTensors`, with the shapes of its comments, V padded.
    shapes = {
        "wte": (128, c), "wpe": (7, c), "ln1w": (n, c), "ln1b": (n, c), "qkvw": (n, 3 * c, c), "qkvb": (n, 3 * c),
        "attprojw": (n, c, c), "attprojb": (n, c), "ln2w": (n, c), "ln2b": (n, c), "fcw": (n, 4 * c, c),
        "fcb": (n, 4 * c), "fcprojw": (n, c, 4 * c), "fcprojb": (n, c), "lnfw": (c,), "lnfb": (c,),
    }  # fmt: skip
    found, at = {}, 1024
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        found[name] = np.frombuffer(content[at:end], "<f4").reshape(shape)
        at = end
    assert at == len(content)
    np.testing.assert_array_equal(found["wte"][:13], weights["wte"])
    assert not found["wte"][13:].any()
    ours = {
        "wpe": "wpe", "ln1": "ln1", "qkv": "qkv", "attproj": "attn_proj", "ln2": "ln2", "fc": "fc",
        "fcproj": "mlp_proj", "lnf": "lnf",
    }  # fmt: skip
    for theirs, mine in ours.items():
        if theirs == "wpe":
            np.testing.assert_array_equal(found["wpe"], weights["wpe"])
            continue
        np.testing.assert_array_equal(found[f"{theirs}b"], weights[f"{mine}_bias"])
        for layer in range(n):  # y = x W of ours is y = W x of theirs
            matrix, own = found[f"{theirs}w"], weights[f"{mine}_weight"]
            if matrix.ndim == 3:
                np.testing.assert_array_equal(matrix[layer].T, own[layer])
            else:
                np.testing.assert_array_equal(matrix, own)


def test_a_vocabulary_that_needs_no_padding_has_none(tmp_path: Path) -> None:
    sizes = Gpt2Sizes(vocabulary=128, context=3, layers=1, heads=1, channels=4)
    write_checkpoint(tmp_path / "gpt2.bin", random_weights(sizes), sizes)
    assert (tmp_path / "gpt2.bin").stat().st_size == 1024 + 4 * sizes.parameters


def test_random_tokens_are_of_the_model() -> None:
    sizes = training_sizes("", sequences=5)
    ids, targets = next(token_batches(sizes, None))
    assert ids.shape == targets.shape == (5, 7)
    assert 0 <= ids.min() <= ids.max() < 13


def training_sizes(library: str, sequences: int = 3) -> TrainingSizes:
    return TrainingSizes(
        model=SIZES, sequences=sequences, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, clip=0.0,
        threads=2, llm_c=library,
    )  # fmt: skip


def test_clip_and_decay_are_taken_from_every_side() -> None:
    sizes = sizes_of(without_clip_and_decay(TINY), 2)
    assert (sizes.clip, sizes.weight_decay) == (0.0, 0.0)


def run_throughput(*arguments: str) -> str:
    """Return what a call that is refused prints."""
    answer = CliRunner().invoke(throughput.main, ["--peer", "llm.c", "--config", "nanogpt-cpu", *arguments])
    assert answer.exit_code != 0
    return " ".join(answer.output.split())


def test_a_missing_path_is_explained(tmp_path: Path) -> None:
    assert "pass --llm-c with the folder" in run_throughput()
    assert "found no folder" in run_throughput("--llm-c", str(tmp_path / "nowhere"))
    found = run_throughput("--llm-c", str(tmp_path))
    assert "github.com/karpathy/llm.c" in found
    assert "a folder without it" in found


def test_an_old_clone_is_explained(tmp_path: Path) -> None:
    (tmp_path / "train_gpt2.c").write_text("int model_header[256];")
    with pytest.raises(LlmCError, match="update the clone"):
        find_source(tmp_path)


def fake_clone(folder: Path, source: str = "") -> Path:
    (folder / "train_gpt2.c").write_text(f"/* padded_vocab_size */\n{source}")
    return folder


def test_a_missing_compiler_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "apt install gcc" in run_throughput("--llm-c", str(fake_clone(tmp_path)))
    monkeypatch.setenv("CC", "tcc-of-mine")
    with pytest.raises(LlmCError, match="CC=tcc-of-mine, which is not on the path"):
        find_compiler()


def test_the_compiler_is_cc_or_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "clang" else f"/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    assert find_compiler() == "/bin/gcc"
    monkeypatch.setenv("CC", "icx")
    assert find_compiler() == "/bin/icx"


def test_a_failed_compilation_shows_the_command_and_its_messages(tmp_path: Path) -> None:
    if not any(map(shutil.which, llm_c.COMPILERS)):
        pytest.skip("no C compiler")
    (tmp_path / "clone").mkdir()
    with pytest.raises(LlmCError, match=r"(?s)could not be compiled.*-Ofast.*GPT2"):
        build_library(fake_clone(tmp_path / "clone", "int not_llm_c;"), tmp_path)


def test_other_models_and_precisions_are_refused(tmp_path: Path) -> None:
    assert "llm.c has only float32" in run_throughput("--precision", "bf16")
    file = tmp_path / "llama.json"
    model = LlamaConfig(vocab_size=17, context=6, layers=2, heads=2, channels=8)
    file.write_text(to_json(Config(name="llama", model=model, batch_size=4, steps=12)))
    answer = CliRunner().invoke(throughput.main, ["--peer", "llm.c", "--config", str(file)])
    assert answer.exit_code == 1
    assert "the peer llm.c is a GPT-2; leave out --peer llm.c for llama" in answer.output


def test_peers_are_separated_by_commas_or_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(throughput, "require_peers", lambda peers, *_: found.append([peer.value for peer in peers]))
    monkeypatch.setattr(throughput, "build_library", lambda *_: sys.exit(3))
    for arguments in (["--peer", "llm.c,jax, torch"], ["--peer", "torch", "--peer", "llm.c,jax"]):
        assert CliRunner().invoke(throughput.main, ["--config", "nanogpt-cpu", *arguments]).exit_code == 3
    assert found == [["torch", "jax", "llm.c"]] * 2
    assert "expected some of torch, jax, llm.c, got 'tinygrad'" in " ".join(
        run_throughput("--peer", "tinygrad").split()
    )


@needs_clone
def test_llm_c_has_the_loss_of_the_reference(tmp_path: Path) -> None:
    assert CLONE is not None
    weights = rounded_weights()
    save_file(dict(weights), tmp_path / "weights.safetensors")
    ids, targets = np.random.default_rng(3).integers(0, 13, (2, 2, 3, 7))
    np.savez(tmp_path / "tokens.npz", ids=ids, targets=targets)
    sizes = training_sizes(str(build_library(Path(CLONE), tmp_path)))
    with SideWorker(Side.LLM_C, "", sizes, folder=tmp_path) as peer:  # -Ofast flushes subnormals of its process to zero
        found = peer.run(2)
    wide = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    expected = reference.losses(wide, ids[0], targets[0], 3).mean()
    assert abs(found.losses[0] - expected) <= 1e-5 * expected
    assert found.updates == 2
    assert found.seconds > 0


@needs_clone
@pytest.mark.timeout(300)  # compiling the kernels takes a minute
def test_llm_c_and_threadloom_compute_the_same(tmp_path: Path) -> None:
    assert CLONE is not None
    config = without_clip_and_decay(TINY)
    sizes = msgspec.structs.replace(sizes_of(config, 2), llm_c=str(build_library(Path(CLONE), tmp_path)))
    assert "3 updates" in agreement.check_equal(to_json(config), sizes, [0], peer=Side.LLM_C)


@needs_clone
def test_the_messages_of_llm_c_are_shown_when_it_gives_up(tmp_path: Path) -> None:
    assert CLONE is not None
    library = build_library(Path(CLONE), tmp_path)
    (tmp_path / "gpt2.bin").write_bytes(np.array([20240326, 99, *[0] * 254], "<i4").tobytes())
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).driver_load(sys.argv[2].encode(), 1)"
    done = subprocess.run(
        [sys.executable, "-c", code, library, tmp_path / "gpt2.bin"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"version" in done.stderr
    assert not done.stdout
