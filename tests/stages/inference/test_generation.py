"""Generation, compared with the reference's full forward pass and with transformers."""

from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.inference.decoder import Decoder, GenerationError, checked_ids
from threadloom.stages.inference.generation import GenerationLimits, generate, generate_text
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.sampling import SamplingError, SamplingSettings
from threadloom.stages.layouts import ModelWeights, as_weights
from threadloom.stages.models import Geometry, parameter_shapes

GEOMETRY = Geometry(vocabulary=37, context=12, layers=3, heads=3, channels=15)
GREEDY = SamplingSettings(temperature=0.0)
ODD = (
    GEOMETRY,
    Geometry(vocabulary=5, context=1, layers=1, heads=1, channels=3),
    Geometry(vocabulary=65, context=70, layers=2, heads=4, channels=16),  # more than one tile of queries
)


def make(geometry: Geometry = GEOMETRY, seed: int = 0) -> tuple[ModelWeights, Arena, reference.Tensors]:
    """Return the same weights for the kernels, as an arena, and for the reference."""
    g = geometry
    tensors = reference.random_tensors(np.random.default_rng(seed), g.vocabulary, g.context, g.layers, g.channels)
    arena = Arena(parameter_shapes(geometry))
    for name, tensor in tensors.items():
        arena[name][...] = tensor
    return as_weights(geometry, arena), arena, tensors


def random_ids(count: int, geometry: Geometry = GEOMETRY, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, geometry.vocabulary, count)


class ExpectedLogits:
    """The reference's logits at every position of a window, and how far correct ones may be from them."""

    def __init__(self, tensors: reference.Tensors, window: np.ndarray, geometry: Geometry) -> None:
        def logits() -> reference.Tensors:
            rows = reference.forward(tensors, window[None], geometry.heads).logits[0]
            return {str(position): row for position, row in enumerate(rows)}

        self._expected, self._bounds = with_bounds(logits)

    def check(self, found: np.ndarray, position: int) -> None:
        """Compare the logits after the token at a position."""
        key = str(position)
        assert_close(found, self._expected[key], self._bounds[key], f"position {key}")


@pytest.mark.parametrize("geometry", ODD)
def test_cached_logits_equal_a_full_forward_at_every_position(geometry: Geometry) -> None:
    weights, _, tensors = make(geometry)
    ids = random_ids(geometry.context, geometry)
    expected = ExpectedLogits(tensors, ids, geometry)
    for prompt in {1, geometry.context // 2 or 1, geometry.context}:
        decoder = Decoder(weights, geometry)
        expected.check(decoder.prefill(ids[:prompt]), prompt - 1)
        for position in range(prompt, geometry.context):
            assert decoder.position == position
            expected.check(decoder.append(int(ids[position])), position)


def test_beyond_the_context_the_last_half_is_processed_again() -> None:
    weights, _, tensors = make()
    ids = random_ids(40)
    decoder = Decoder(weights, GEOMETRY)
    decoder.prefill(ids[:1])
    begin = 0  # first position of the window that the model sees
    expected = ExpectedLogits(tensors, ids[: GEOMETRY.context], GEOMETRY)
    for position in range(1, len(ids)):
        logits = decoder.append(int(ids[position]))
        if position - begin == GEOMETRY.context:
            begin = position + 1 - GEOMETRY.context // 2
            expected = ExpectedLogits(tensors, ids[begin : begin + GEOMETRY.context], GEOMETRY)
        assert decoder.position == position + 1 - begin
        expected.check(logits, position - begin)


def test_a_long_prompt_is_truncated_to_the_last_context() -> None:
    weights, _, tensors = make()
    ids = random_ids(30)
    ExpectedLogits(tensors, ids[-12:], GEOMETRY).check(Decoder(weights, GEOMETRY).prefill(ids), 11)


def test_a_context_of_one_token_still_generates() -> None:
    geometry = ODD[1]
    weights, _, tensors = make(geometry)
    token = 2
    for found in generate(weights, geometry, [token], 6, GREEDY, 0):
        token = int(reference.next_token_logits(tensors, np.array([token]), 1).argmax())
        assert found == token


def test_prefill_clears_the_cache() -> None:
    weights, _, _ = make()
    decoder = Decoder(weights, GEOMETRY)
    first = decoder.prefill(random_ids(5)).copy()
    decoder.append(3)
    decoder.prefill(random_ids(9, seed=7))
    np.testing.assert_array_equal(decoder.prefill(random_ids(5)), first)


def test_the_same_seed_draws_the_same_tokens() -> None:
    weights, _, _ = make()
    settings = SamplingSettings(temperature=1.5, top_k=30, top_p=0.99)
    texts = [list(generate(weights, GEOMETRY, [1, 2], 30, settings, seed)) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) == 30 and set(text) <= set(range(37)) for text in texts)
    assert list(generate(weights, GEOMETRY, [1, 2], 10, settings, 5)) == texts[0][:10]


def test_tokens_are_yielded_one_by_one() -> None:
    weights, _, _ = make()
    tokens = generate(weights, GEOMETRY, [1], 10**9, GREEDY, 0)
    assert len([next(tokens) for _ in range(3)]) == 3
    assert list(generate(weights, GEOMETRY, [1], 0, GREEDY, 0)) == []


def test_greedy_text_equals_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.utils.logging.disable_progress_bar()
    weights, arena, _ = make()
    write_model(tmp_path, arena, GEOMETRY)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    for seed in range(3):
        prompt = random_ids(4, seed=seed)
        ids = torch.tensor(prompt)[None]
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert list(generate(weights, GEOMETRY, prompt, 8, GREEDY, 0)) == found[0, 4:].tolist()


@pytest.mark.parametrize("prompt", [[37], [-1], [3, 2**40, 1], [], [[1, 2]], [1.5]])
def test_a_prompt_is_checked_before_kernels_run(prompt: list[int]) -> None:
    weights, _, _ = make()
    with pytest.raises(GenerationError, match="the prompt: expected"):
        generate(weights, GEOMETRY, prompt, 5, GREEDY, 0)
    with pytest.raises(GenerationError, match="the prompt: expected"):
        Decoder(weights, GEOMETRY).prefill(prompt)


def test_a_token_is_checked_before_kernels_run() -> None:
    weights, _, _ = make()
    decoder = Decoder(weights, GEOMETRY)
    decoder.prefill([1])
    for token in (37, -1):
        with pytest.raises(GenerationError, match=f"token ids from 0 to 36, got {token}"):
            decoder.append(token)
    assert decoder.position == 1


def test_invalid_weights_counts_and_seeds_are_refused_before_the_first_token() -> None:
    weights, _, _ = make()
    other = Geometry(vocabulary=38, context=12, layers=3, heads=3, channels=15)
    with pytest.raises(GenerationError, match=r"the weights' wte: expected .*\(38, 15\), got float32 \(37, 15\)"):
        generate(weights, other, [1], 5, GREEDY, 0)
    transposed = weights._replace(qkv_weight=np.zeros((3, 45, 15), np.float32).transpose(0, 2, 1))
    with pytest.raises(GenerationError, match="C-contiguous"):
        generate(transposed, GEOMETRY, [1], 5, GREEDY, 0)
    with pytest.raises(GenerationError, match="tokens: expected a number of at least 0, got -1"):
        generate(weights, GEOMETRY, [1], -1, GREEDY, 0)
    with pytest.raises(SamplingError, match="seed"):
        generate(weights, GEOMETRY, [1], 1, GREEDY, -1)


def test_ids_of_every_integer_type_are_accepted() -> None:
    for kind in (np.uint8, np.int64, np.uint64, np.uint16):
        ids = checked_ids(np.array([0, 36], kind), GEOMETRY)
        assert ids.dtype == np.int32
        assert ids.tolist() == [0, 36]


def model_with(alphabet: str, ends: frozenset[int] = frozenset()) -> Model:
    """Return a model of 37 tokens, of which the tokenizer has the first ones."""
    return Model(Path("model"), GEOMETRY, make()[0], CharacterTokenizer(alphabet), None, ends)


def text_of(model: Model, limits: GenerationLimits, seed: int = 3) -> str:
    return "".join(generate_text(model, [0], SamplingSettings(temperature=3.0), limits, seed))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_ids_without_text_are_never_drawn(temperature: float) -> None:
    model = model_with("abc")
    assert model.ids_without_text.tolist() == list(range(3, 37))
    settings = SamplingSettings(temperature=temperature)
    text = "".join(generate_text(model, [0], settings, GenerationLimits(60), 0))
    assert len(text) == 60
    assert set(text) <= set("abc")


def test_the_other_tokens_keep_their_relative_probabilities() -> None:
    """A greedy choice among the allowed tokens is the largest of their logits in the reference."""
    weights, _, tensors = make()
    allowed = np.array([2, 11, 30])
    excluded = np.setdiff1d(np.arange(37), allowed)
    for first in range(37):
        (token,) = generate(weights, GEOMETRY, [first], 1, GREEDY, 0, excluded)
        logits = reference.next_token_logits(tensors, np.array([first]), GEOMETRY.heads)
        assert token == allowed[logits[allowed].argmax()]


def test_a_text_ends_at_its_limits() -> None:
    alphabet = "".join(map(chr, range(97, 97 + 37)))
    whole = text_of(model_with(alphabet), GenerationLimits(60))
    assert len(whole) == 60
    stop = whole[20:23]
    assert text_of(model_with(alphabet), GenerationLimits(60, stop=("never", stop))) == whole[: whole.index(stop)]
    end = ord(whole[30]) - 97
    ending = model_with(alphabet, frozenset({end}))
    assert text_of(ending, GenerationLimits(60)) == whole[: whole.index(whole[30])]
    assert text_of(ending, GenerationLimits(60, ignore_eos=True)) == whole
    with pytest.raises(GenerationError, match="stop: expected a text of at least one character"):
        GenerationLimits(1, stop=("a", ""))
