"""Folders whose tokenizer has more ids than the model has rows: no such id reaches a kernel."""

from pathlib import Path

import numpy as np
import pytest

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.data import DataError
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.inference import Model, evaluate_text
from threadloom.stages.inference.decoder import GenerationError
from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.sampling import SamplingSettings
from threadloom.stages.models import Geometry, parameter_shapes

ALPHABET = "".join(map(chr, range(0x10000, 0x10000 + 65_536 + 100)))
FIRST_WITHOUT_ROW, WRAPPED = 301, 65_536 + 7  # the second is 7 in 16 bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model with 300 rows and a tokenizer with more than 65,536 ids."""
    geometry = Geometry(vocabulary=300, context=4, layers=1, heads=1, channels=4)
    write_model(tmp_path, Arena(parameter_shapes(geometry)), geometry)
    CharacterTokenizer(ALPHABET).save(tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize("number", [FIRST_WITHOUT_ROW, WRAPPED])
def test_a_text_with_an_id_that_the_model_has_no_row_for_is_refused(folder: Path, number: int) -> None:
    tokenizer = CharacterTokenizer(ALPHABET)
    text = tokenizer.decode(np.array([5, 6, number, 8, 9]))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"{number}"):
        evaluate_text(folder, (str(folder / "text.txt"),))
    model = Model.open(folder)
    with pytest.raises(GenerationError, match=f"token ids from 0 to 299, got {number}"):
        generate(model.weights, model.geometry, tokenizer.encode(text), 3, SamplingSettings(), 0)
