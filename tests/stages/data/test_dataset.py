"""Preparation of a text: split, tokenised, reused, and prepared again after changes."""

import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.data.made_tokenizers import MADE, TEXT as MADE_TEXT
from threadloom.stages.config import BatchSizes, Config, ConfigError, Gpt2Config, SpecialTokens
from threadloom.stages.data.batches import (
    RandomTokens,
)
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.dataset import Dataset, prepare, prepared_special_tokens
from threadloom.stages.data.token_file import DataError
from threadloom.stages.data.tokenizer import TokenizerError
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.validation import validate
from threadloom.stages.storage import DiskFullError


def prepared(config: Config, text: str, directory: Path) -> Dataset:
    return prepare(config.data, config.model, StringText(text), directory)


TEXT = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(2000)) + "\n"


def config(*overrides: str) -> Config:
    base = Config(name="x", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    return apply_overrides(base, overrides)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_a_text_is_split_before_it_is_tokenised(tmp_path: Path, kind: str) -> None:
    data = prepared(config(f"data.tokenizer={kind}", "model.vocab_size=300"), TEXT, tmp_path / "deep" / "er")
    cut = 1800  # int(2001 * 0.9)
    assert data.tokenizer.decode(data.train.ids) == TEXT[:cut]
    assert data.tokenizer.decode(data.validation.ids) == TEXT[cut:]
    assert (data.manifest.train.characters, data.manifest.validation.characters) == (cut, len(TEXT) - cut)
    assert (data.manifest.train.tokens, data.manifest.validation.tokens) == (len(data.train), len(data.validation))
    assert data.manifest.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert data.manifest.vocab_size == data.tokenizer.vocab_size == data.train.vocab_size
    assert data.train.ids.dtype == np.uint16
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == [
        "manifest.json", "tokenizer.json", "train.npy", "validation.npy",
    ]  # fmt: skip


def test_tiny_shakespeare_is_split_as_by_nanogpt(tmp_path: Path) -> None:
    """A text with the length of tinyshakespeare and as many different characters."""
    alphabet = "".join(chr(33 + i) for i in range(65))
    data = prepared(config(), (alphabet * 17160)[:1_115_394], tmp_path)
    assert (len(data.train), len(data.validation), data.tokenizer.vocab_size) == (1_003_854, 111_540, 65)


def test_an_up_to_date_directory_is_reused(tmp_path: Path) -> None:
    first = prepared(config(), TEXT, tmp_path)
    resolved = resolve(config(), 2, first.tokenizer.vocab_size)
    again = prepared(resolved, TEXT, tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifest == first.manifest
    assert again.tokenizer.encode(TEXT).tolist() == first.tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("change", ["data.train_fraction=0.8", "data.alphabet=9", "data.tokenizer=bytes", "text"])
def test_changes_are_prepared_again(tmp_path: Path, change: str) -> None:
    prepared(config(), TEXT, tmp_path)
    text = "Z" + TEXT[1:] if change == "text" else TEXT
    changed = config() if change == "text" else config(change)
    data, fresh = prepared(changed, text, tmp_path), prepared(changed, text, tmp_path / "fresh")
    assert not data.reused
    assert data.manifest == fresh.manifest
    assert data.train.ids.tolist() == fresh.train.ids.tolist()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train.npy", "validation.npy"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_damaged_directory_is_prepared_again(tmp_path: Path, name: str, damage: str) -> None:
    expected = prepared(config(), TEXT, tmp_path).train.ids.tolist()
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-3])
    data = prepared(config(), TEXT, tmp_path)
    assert not data.reused
    assert data.train.ids.tolist() == expected
    assert prepared(config(), TEXT, tmp_path).reused


def test_a_split_that_is_too_short_is_rejected_and_nothing_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 9 tokens.*got 8") as caught:
        prepared(config(), TEXT[:80], tmp_path / "none")
    assert caught.value.subject.endswith("validation.npy")
    with pytest.raises(DataError, match="got empty files"):
        prepared(config(), "", tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []
    prepared(config(), TEXT, tmp_path)
    with pytest.raises(DataError, match=r"at least 9 tokens"):
        prepared(config(), TEXT[:80], tmp_path)
    assert prepared(config(), TEXT, tmp_path).reused


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of files, the closest to a full disk that needs no privileges."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_leaves_no_partial_files(tmp_path: Path) -> None:
    with file_size_limit(1000), pytest.raises(DiskFullError, match=r"train\.npy: expected space.*ulimit -f"):
        prepared(config(), TEXT, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not prepared(config(), TEXT, tmp_path).reused


def test_a_text_that_exceeds_the_disk_is_refused_before_it_is_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes for each character; byte-pair encoding may need less."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * len(TEXT) - 1))
    with pytest.raises(DiskFullError, match=f"expected space for {2 * len(TEXT):,} bytes"):
        prepared(config(), TEXT, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not prepared(config("data.tokenizer=bpe", "model.vocab_size=300"), TEXT, tmp_path).reused


def test_a_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=os.strerror(errno.EEXIST)):
        prepared(config(), TEXT, tmp_path / "file")


def test_batches_of_a_configuration(tmp_path: Path) -> None:
    made = config("gradient_accumulation_steps=3", "micro_batch=2", "seed=5")
    data = prepared(made, TEXT, tmp_path)
    resolved = resolve(made, 2, data.tokenizer.vocab_size)
    assert resolved.batch_sizes == BatchSizes(12, 2)
    assert data.train.vocab_size == data.tokenizer.vocab_size
    source = RandomTokens(resolved.model.geometry(), resolved.batch_sizes, resolved.seed)
    ids, targets = np.zeros(16, np.int32), np.zeros(16, np.int32)
    source.fill(4, 5, ids, targets)
    assert ids.max() < data.tokenizer.vocab_size


def model_folder(folder: Path) -> Path:
    """Return a folder with a tokenizer and files that accompany it."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(MADE["qwen"]())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text("{}")
    return folder


def pretrained(folder: Path, *overrides: str) -> Config:
    return config("data.tokenizer=pretrained", f"data.tokenizer_path={folder}", *overrides)


def test_a_pretrained_tokenizer_is_copied_with_the_files_that_accompany_it(tmp_path: Path) -> None:
    folder, out = model_folder(tmp_path / "model"), tmp_path / "data"
    data = prepared(pretrained(folder), MADE_TEXT, out)
    cut = int(len(MADE_TEXT) * 0.9)
    assert data.tokenizer.decode(data.train.ids) == MADE_TEXT[:cut]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not (out / "config.json").exists()
    again = prepared(pretrained(folder), MADE_TEXT, out)
    shutil.rmtree(folder)
    alone = prepared(pretrained(folder), MADE_TEXT, out)
    for reused in (again, alone):  # the folder is not needed any more
        assert reused.reused
        assert reused.tokenizer.end_of_text == data.tokenizer.end_of_text
        assert reused.tokenizer.end_of_text is not None
        assert reused.tokenizer.end_of_text.token == "<|im_end|>"


def test_another_pretrained_tokenizer_is_prepared_again(tmp_path: Path) -> None:
    folder, out = model_folder(tmp_path / "model"), tmp_path / "data"
    prepared(pretrained(folder), MADE_TEXT, out)
    (folder / "tokenizer.json").write_text(MADE["neox"]())
    (folder / "chat_template.jinja").unlink()
    changed = prepared(pretrained(folder), MADE_TEXT, out)
    assert not changed.reused
    assert not (out / "chat_template.jinja").exists()
    shutil.rmtree(folder)
    with pytest.raises(TokenizerError, match=r"model: expected .* got No such file"):
        prepared(pretrained(folder), MADE_TEXT, tmp_path / "other")


def test_special_tokens_of_a_text_are_tokens_or_text(tmp_path: Path) -> None:
    folder, text = model_folder(tmp_path / "model"), "a<|im_end|>b\n" * 50
    as_tokens = prepared(pretrained(folder, "data.special_tokens=tokens"), text, tmp_path / "data")
    assert as_tokens.tokenizer.end_of_text is not None
    end = as_tokens.tokenizer.end_of_text.id
    assert end in as_tokens.train.ids
    as_text = prepared(pretrained(folder), text, tmp_path / "data")
    assert not as_text.reused
    assert end not in as_text.train.ids
    assert as_text.tokenizer.decode(as_text.train.ids) == text[: int(len(text) * 0.9)]
    assert prepared_special_tokens(tmp_path / "data") is SpecialTokens.TEXT is prepared_special_tokens(tmp_path)
    prepared(pretrained(folder, "data.special_tokens=tokens"), text, tmp_path / "data")
    assert prepared_special_tokens(tmp_path / "data") is SpecialTokens.TOKENS


def test_the_path_of_a_tokenizer_belongs_to_its_kind() -> None:
    for overrides in (["data.tokenizer=pretrained"], ["data.tokenizer_path=x"]):
        with pytest.raises(ConfigError, match=r"data\.tokenizer_path"):
            validate(config(*overrides))
