"""The facts of a prepared text: rows in the order of the run, also if that is not the order of the tokenizer."""

from pathlib import Path

import pytest

from threadloom.stages.config import DataConfig, Digits, Gpt2Config, TokenizerKind, TokenOrder
from threadloom.stages.data import StringText, prepare
from threadloom.stages.embedding import vocabulary_facts

TEXT = "99 bottles, 98 bottles, 907 bottles and 12 more. " * 9


@pytest.mark.parametrize("order", list(TokenOrder))
def test_texts_digits_and_places_are_those_of_the_rows(order: TokenOrder, tmp_path: Path) -> None:
    config = DataConfig(
        tokenizer=TokenizerKind.CHARACTERS, digits=Digits.ABACUS, digit_places=3, token_order=order, train_fraction=0.5
    )
    model = Gpt2Config(context=4, layers=1, heads=1, channels=8)
    data = prepare(config, model, StringText(TEXT), tmp_path)
    size = data.tokenizer.vocab_size + 2  # a vocabulary that was rounded up
    facts = vocabulary_facts(data, size)
    assert (data.order is None) == (order is TokenOrder.ID)
    written = "".join(facts.texts[row] for row in data.train.ids)
    assert TEXT.startswith(written)
    assert len(written) > 100
    place = 0
    for row in data.train.ids:  # counted again along the text
        character = facts.texts[row]
        place = place + 1 if character.isdigit() else 0
        assert facts.places[row] == place
        assert facts.digits[row] == (int(character) if character.isdigit() else -1)
    assert facts.texts[size - 2 :] == ("", "")
    pairs = {(facts.texts[a], facts.texts[b]): count for a, b, count in zip(*facts.pairs(), strict=True)}
    assert pairs["b", "o"] == written.count("bo")
