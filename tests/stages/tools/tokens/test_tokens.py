"""`threadloom tokens`: the vocabulary of a prepared text or of a tokenizer."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.stages.support import command
from threadloom.stages.config import DataConfig, Digits, Gpt2Config, TokenOrder
from threadloom.stages.data import StringText, prepare
from threadloom.stages.data.character_tokenizer import CharacterTokenizer

TEXT = "a b 12 bb\n12 bbb 3\t" * 30


def listed(*arguments: str | Path) -> list[dict[str, str]]:
    outcome = command("tokens", *arguments)
    assert outcome.status == 0, outcome.err
    header, *lines = outcome.out.rstrip("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def prepared(folder: Path, **data: object) -> None:
    model = Gpt2Config(context=4, layers=1, heads=1, channels=4)
    prepare(DataConfig(train_fraction=0.5, **data), model, StringText(TEXT), folder)  # type: ignore[arg-type]


def test_tokens_of_a_run_are_in_its_order_with_their_counts(tmp_path: Path) -> None:
    prepared(tmp_path / "run" / "data", token_order=TokenOrder.FREQUENCY)
    rows = listed(tmp_path / "run")
    assert rows == listed(tmp_path / "run" / "data")
    counts = Counter(TEXT[: len(TEXT) // 2])
    alphabet = sorted(set(TEXT))
    ranked = sorted(alphabet, key=lambda character: (-counts[character], character))
    assert [json.loads(row["text"]) for row in rows] == ranked
    assert [int(row["id"]) for row in rows] == [alphabet.index(character) for character in ranked]
    assert [int(row["count"]) for row in rows] == [counts[character] for character in ranked]
    assert [int(row["rank"]) for row in rows] == list(range(len(alphabet)))
    shares = np.cumsum([counts[character] for character in ranked]) / (len(TEXT) // 2)
    assert [row["share"] for row in rows] == [f"{share:.6f}" for share in shares]
    assert "place" not in rows[0]
    assert listed(tmp_path / "run", "--first", "2") == rows[:2]


def test_a_tokenizer_alone_has_no_counts_and_may_have_places(tmp_path: Path) -> None:
    prepared(tmp_path / "data", digits=Digits.ABACUS, digit_places=2)
    assert listed(tmp_path / "data")[-19]["place"] == "1"
    rows = listed(tmp_path / "data" / "tokenizer.json")
    assert [*rows[0]] == ["rank", "id", "text", "place"]
    assert rows[-1] == {"rank": rows[-1]["id"], "id": rows[-1]["id"], "text": '"9"', "place": "2"}
    assert rows[0] == {"rank": "0", "id": "0", "text": '"\\t"', "place": ""}


@pytest.mark.parametrize("damage", ["none", "token", "order"])
def test_what_has_no_tokens_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "data"
    if damage == "none":
        command("tokens", tmp_path).refuses("tokenizer.json", "expected a tokenizer saved by threadloom")
        return
    prepared(folder, token_order=TokenOrder.FREQUENCY)
    if damage == "order":
        (folder / "token_order.npy").unlink()
        command("tokens", folder).refuses("token_order.npy", "order of the vocabulary")
        return
    CharacterTokenizer("ab").save(folder / "tokenizer.json")
    command("tokens", folder).refuses("train.npy", "ids from 0 to 1", "from another tokenizer")
