"""JSON files with byte order marks, wherever JSON is read from outside."""

import json
from pathlib import Path

import pytest

from threadloom.stages.config import ConfigError
from threadloom.stages.data import load_tokenizer
from threadloom.stages.data.bpe_tokenizer import BpeTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.models import Geometry
from threadloom.stages.models.gpt2 import Gpt2HuggingFace
from threadloom.stages.resolve import from_json, load_config, to_json
from threadloom.stages.storage import plain_json, read_geometry

MARKED = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", MARKED)
def test_json_in_any_encoding_of_unicode_is_read(tmp_path: Path, encoding: str) -> None:
    """`utf-8-sig` is what editors on Windows write, `utf-16` what PowerShell's `>` writes."""
    config = load_config("nanogpt-cpu")
    path = tmp_path / "file.json"
    path.write_text(to_json(config), encoding=encoding)
    assert load_config(path) == config

    geometry = Geometry(300, 8, 1, 2, 4)
    path.write_text(json.dumps(Gpt2HuggingFace().config(geometry, None)), encoding=encoding)
    assert read_geometry(path) == geometry

    CharacterTokenizer("abé").save(path)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert load_tokenizer(path).encode("é").tolist() == [2]

    BpeTokenizer.train(StringText("abc"), 257).save(path)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert load_tokenizer(path).vocab_size == 257


def test_a_text_with_a_mark_is_read() -> None:
    config = load_config("nanogpt-cpu")
    assert from_json("\ufeff" + to_json(config)) == config


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xfe\x7b", b"\xef\xbb\xbf", b"{\0", b"\0\0\0"])
def test_damaged_files_are_reported_by_the_parser(tmp_path: Path, content: bytes) -> None:
    plain_json(content)
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ConfigError, match="expected JSON"):
        load_config(tmp_path / "c.json")
