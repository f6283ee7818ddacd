"""The benchmark of preparations: both contestants encode the same text."""

from pathlib import Path

from benchmarks.preparation import library, require_equal_ids, threadloom, write_text
from threadloom.stages.config import DataConfig, TokenizerKind
from threadloom.stages.data import create_tokenizer, read_text


def test_both_encode_the_same_text(tmp_path: Path) -> None:
    text, tokenizer = tmp_path / "text.txt", tmp_path / "tokenizer.json"
    write_text(text, 60_000)
    create_tokenizer(DataConfig(tokenizer=TokenizerKind.BPE), 400, read_text([text])).save(tokenizer)
    require_equal_ids(text, tokenizer)
    theirs, ours = library(text, tokenizer), threadloom(text, tokenizer)
    assert theirs.characters == ours.characters == len(text.read_text(encoding="utf-8"))
    assert abs(theirs.tokens - ours.tokens) <= 8, "only a token at each cut may differ"
    assert ours.peak_bytes > 0
