"""Requests of lm-evaluation-harness, answered without it: compared with the reference and with other functions."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.stages.data.made_tokenizers import MADE
from tests.stages.inference.test_choice_evaluation import expected_likelihood
from tests.stages.inference.test_text_evaluation import GEOMETRY, folder, one_by_one
from tests.stages.support import command
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.inference import (
    GenerationLimits,
    HarnessModel,
    SamplingSettings,
    generate_text,
)
from threadloom.stages.inference.decoder import GenerationError
from threadloom.stages.resolve import float32_settings
from threadloom.stages.tools.evaluate import harness

__all__ = ["folder"]

pytestmark = pytest.mark.timeout(600)  # includes compiling with an empty cache


class Request(NamedTuple):
    """Stands in for the harness's `Instance`."""

    args: tuple[Any, ...]


def test_likelihoods_are_those_of_the_reference(folder: Path) -> None:
    pairs = [("Wie", " a"), ("A context longer than that of the model", " yes"), ("", "ohne"), ("x ", "y")]
    found = HarnessModel(folder, device="cpu", batch_size=3).loglikelihood([Request(pair) for pair in pairs])
    for pair, (log_likelihood, greedy) in zip(pairs, found, strict=True):
        expected, bound, expected_greedy = expected_likelihood(*pair, "")
        assert abs(log_likelihood - expected) <= bound
        assert greedy == expected_greedy


@pytest.mark.parametrize("length", [0, 1, 10, 11, 12, 22, 23, 40])
def test_a_rolling_likelihood_is_that_of_all_tokens_after_the_prefix(folder: Path, length: int) -> None:
    text = "All tokens of this text, the first included."[:length]
    [other, found] = HarnessModel(folder).loglikelihood_rolling([Request(("other",)), Request((text,))])
    assert other < 0.0
    if not length:
        assert found == 0.0
        return
    ids = np.frombuffer(f"\n{text}".encode(), np.uint8).astype(np.int64)  # the bytes tokenizer has no other beginning
    expected, bound = one_by_one(ids, GEOMETRY.context)
    assert abs(found + expected * length) <= bound * length


def test_windows_are_those_of_the_harness(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The example in the documentation of `LM.loglikelihood_rolling`: a context of 4, ten tokens."""
    model = HarnessModel(folder)
    monkeypatch.setattr(HarnessModel, "max_length", 4)
    windows = [
        (w.inputs.tolist(), w.targets.tolist()) for w in model._windows("\x00\x01\x02\x03\x04\x05\x06\x07\x08\t")
    ]
    assert windows == [([10, 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9])]


def test_texts_are_generated_up_to_a_stop(folder: Path) -> None:
    model = HarnessModel(folder, max_gen_toks=7)
    with float32_settings():
        ids = model.model.prompt("ab")
        whole = "".join(generate_text(model.model, ids, SamplingSettings(0.0), GenerationLimits(7), 0))
    assert len(whole) > 3
    stop = whole[2:4]
    cut = whole[: whole.index(stop)]
    settings: list[tuple[dict[str, Any], str]] = [
        ({}, whole), ({"until": [stop, ""]}, cut), ({"until": stop, "max_new_tokens": 7}, cut), ({"until": []}, whole),
        ({"do_sample": False, "temperature": 3.0}, whole), ({"do_sample": True, "top_k": 1}, whole),
    ]  # fmt: skip
    found = model.generate_until([Request(("ab", setting)) for setting, _ in settings])
    assert found == [expected for _, expected in settings]
    sampled = Request(("ab", {"do_sample": True, "temperature": 9.0}))
    assert model.generate_until([sampled]) == model.generate_until([sampled]) != [whole]
    long = [Request((prompt, {"max_gen_toks": 4})) for prompt in ("0123456789abcdef", "9abcdef", "")]
    first, second, _ = model.generate_until(long)
    assert first == second, "the context is cut from the left, so that the tokens have room"
    for tokens in (0, 11):
        with pytest.raises(GenerationError, match="a number from 1 to 10, less than the context"):
            model.generate_until([Request(("a", {"max_gen_toks": tokens}))])


def test_answers_reach_the_cache_of_the_harness(folder: Path) -> None:
    kept = list[tuple[Any, ...]]()

    class Hook:
        def add_partial(self, *arguments: Any) -> None:
            kept.append(arguments)

    model = HarnessModel(folder)
    model.cache_hook = Hook()  # type: ignore[attr-defined]
    [likelihood] = model.loglikelihood([Request(("a", "b"))])
    [text] = model.generate_until([Request(("a", {"max_gen_toks": 2}))])
    assert kept == [
        ("loglikelihood", ("a", "b"), likelihood), ("generate_until", ("a", {"max_gen_toks": 2}), text),
    ]  # fmt: skip
    assert math.isfinite(likelihood[0])


def test_special_tokens_are_tokens_and_the_end_of_a_text_is_the_prefix(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "threadloom.stages.inference.model.load_tokenizer",
        lambda _: LibraryTokenizer(json.dumps(json.loads(MADE["smollm"]()))),
    )
    model = HarnessModel(folder)
    [window] = model._windows("<|im_end|>")
    assert (window.inputs.tolist(), window.targets.tolist()) == ([model.eot_token_id], [2])


def test_without_the_extra_a_sentence_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="lm_eval")

    monkeypatch.setattr(harness, "importlib", type("Importlib", (), {"import_module": staticmethod(missing)}))
    found = command("eval", folder, "--harness", "arc_easy")
    found.refuses("lm-evaluation-harness, the package lm_eval, and what it needs, got not installed: lm_eval")
    assert "pip install 'threadloom[lm-eval]'" in found.err


def test_options_of_different_evaluations_are_refused_together(folder: Path) -> None:
    for wrong, message in (
        (("--harness=x", "--choices=y"), "--choices and --harness are different evaluations"),
        (("--harness=x", "--stride=3"), "--stride belongs to the loss of a text"),
        (("--limit=3",), "--limit belongs to --harness"),
        (("--harness=x", "--output=y"), "--output belongs to --choices"),
    ):
        found = command("eval", folder, *wrong)
        assert found.status == 2
        assert message in found.err
