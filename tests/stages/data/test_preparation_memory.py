"""The memory of a preparation: independent of the length of the text, and within the plan."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from threadloom.stages.config import Config, ConfigError, Gpt2Config
from threadloom.stages.data import bpe_memory
from threadloom.stages.data.bpe_memory import distinct_word_bytes
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.data.dataset import prepare
from threadloom.stages.data.tokenizer_registry import preparation_bytes
from threadloom.stages.resolve.loading import apply_overrides

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[3]

PREPARE = """
import json, sys, tempfile
from pathlib import Path
from threadloom.stages.config import DataConfig, Gpt2Config, TokenizerKind
from threadloom.stages.console.json_worker import peak_resident_bytes, resident_bytes
from threadloom.stages.data import prepare, preparation_bytes, read_text
begin = resident_bytes()
for file, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    data, text = DataConfig(tokenizer=TokenizerKind(kind)), read_text([file])
    model = Gpt2Config(context=8, layers=1, heads=1, channels=4, vocab_size=1000 if kind == "bpe" else None)
    with tempfile.TemporaryDirectory() as folder:
        kept = prepare(data, model, text, Path(folder))
        used = peak_resident_bytes() - begin
    print(json.dumps({"used": used, "plan": preparation_bytes(data, text), "characters": text.characters}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the current memory of a process")
def test_a_preparation_takes_at_most_its_plan(tmp_path: Path) -> None:
    """Of a text longer than the plan; of different words, which take most memory in BPE (of a short text: here)."""
    line = "x" * 970 + " é 猫 \U0010fffd the cat sat\n"
    (tmp_path / "long").write_text(line * 33_000, encoding="utf-8")
    (tmp_path / "words").write_text(" ".join(map(str, random.Random(1).sample(range(10**8), 50_000))))
    cases = (("long", "bytes"), ("long", "characters"), ("words", "bpe"))
    arguments = [argument for name, kind in cases for argument in (str(tmp_path / name), kind)]
    answer = subprocess.run(
        [sys.executable, "-c", PREPARE, *arguments],
        text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    for found, (name, _) in zip(map(json.loads, answer.stdout.splitlines()), cases, strict=True):
        assert found["used"] <= found["plan"], found
        if name == "long":
            assert found["plan"] < 2 * found["characters"], "less than two bytes per character"


def test_a_preparation_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = Config(name="x", model=Gpt2Config(context=4, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    text = StringText("ab" * 100)
    needed = preparation_bytes(config.data, text)
    with pytest.raises(ConfigError, match=r"data\.text: expected a text whose preparation fits.*--force"):
        prepare(config.data, config.model, text, tmp_path / "data", needed - 1)
    assert not (tmp_path / "data").exists()
    assert prepare(config.data, config.model, text, tmp_path / "data", needed).preparation_bytes == needed
    again = prepare(config.data, config.model, text, tmp_path / "data", 0)
    assert (again.reused, again.preparation_bytes) == (True, 0)
    bpe = apply_overrides(config, ["data.tokenizer=bpe", "model.vocab_size=300"])
    with pytest.raises(ConfigError, match=r"every different word\).*data\.tokenizer=bytes"):
        prepare(bpe.data, bpe.model, text, tmp_path / "bpe", 1)


def test_the_words_of_a_short_text_are_counted() -> None:
    assert distinct_word_bytes(StringText("the cat the the cat\ncafé")) == len("the") + len(" cat") + len(" the") + len(
        "\n"
    ) + len("café".encode())


@pytest.mark.parametrize("different", [True, False])
def test_the_words_of_a_long_text_are_extrapolated(monkeypatch: pytest.MonkeyPatch, different: bool) -> None:
    """Only different words, and two words again and again: the two ends of Heaps' law, where it is exact.

    Slices end after the space of a word. So a word that begins one lacks its space, one byte per slice of 1,024, and
    the last space of a slice is a word: at most 8 + 1 more bytes in all slices of the same words.
    """
    monkeypatch.setattr(bpe_memory, "SLICE_CHARACTERS", 1 << 10)
    monkeypatch.setattr(bpe_memory, "SAMPLE_CHARACTERS", 1 << 14)
    words = [f"{number:07}" for number in range(10_000)] if different else ["1234567", "7654321"] * 5_000
    expected = 8 * 10_000 - 1 if different else 7 + 8 + 8
    found = distinct_word_bytes(StringText(" ".join(words)))
    assert -0.002 * expected <= found - expected <= 9 + 0.002 * expected
