"""The choice of the tensors to train: patterns, and the errors of those that choose nothing or a part of a tensor."""

import pytest

from tests.stages.resolve.support import refusal
from threadloom.stages.config import TrainConfig
from threadloom.stages.models import Geometry, parameter_shapes

GEOMETRY = Geometry(11, 8, 2, 3, 15)
NAMES = set(parameter_shapes(GEOMETRY))
NORMS = {"ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias", "lnf_weight", "lnf_bias"}
ATTENTION = {"qkv_weight", "qkv_bias", "attn_proj_weight", "attn_proj_bias"}


def frozen(only: tuple[str, ...] = (), freeze: tuple[str, ...] = ()) -> frozenset[str]:
    return TrainConfig(only=only, freeze=freeze).frozen_tensors(GEOMETRY)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("wte", {"wte"}),
        ("qkv_*", {"qkv_weight", "qkv_bias"}),
        ("ln?_bias", {"ln1_bias", "ln2_bias", "lnf_bias"}),
        ("*ln_*", NORMS),  # ln_1, ln_2 and ln_f in Hugging Face's layout
        ("transformer.h.*.attn.*", ATTENTION),
        ("*attn*", ATTENTION),
        ("transformer.wte.weight", {"wte"}),
        ("lm_head.weight", {"wte"}),  # tied
        ("transformer.wpe.*", {"wpe"}),
    ],
)
def test_patterns_match_the_names_here_and_in_the_layout_of_hugging_face(pattern: str, matched: set[str]) -> None:
    assert frozen(freeze=(pattern,)) == matched
    assert frozen(only=(pattern,)) == NAMES - matched


def test_by_default_nothing_is_frozen() -> None:
    assert frozen() == frozenset()


def test_patterns_add_up_and_freeze_applies_to_those_that_are_trained() -> None:
    assert frozen(freeze=("wte", "wpe")) == {"wte", "wpe"}
    assert frozen(only=("*attn*", "wte"), freeze=("*bias",)) == NAMES - {"qkv_weight", "attn_proj_weight", "wte"}


@pytest.mark.parametrize(
    ("only", "freeze", "subject", "words"),
    [
        (("q_proj",), (), "train.only", ["'q_proj', which matches none", "wte, wpe, qkv", "transformer.wte.weight"]),
        ((), ("qkv",), "train.freeze", ["'qkv', which matches none"]),
        ((), ("transformer.h.0.*",), "train.freeze", ["a part of", "transformer.h.1.", "trained or frozen together"]),
        ((), ("*.1.mlp.c_fc.weight",), "train.freeze", ["a part of fc_weight", "use fc_weight, which has all 2 parts"]),
        ((), ("*",), "train.freeze", ["leave a tensor to train"]),
        (("wte",), ("w*",), "train.freeze", ["leave a tensor to train", "got w*"]),
    ],
)  # fmt: skip
def test_patterns_of_nothing_of_a_part_and_of_everything_are_refused(
    only: tuple[str, ...], freeze: tuple[str, ...], subject: str, words: list[str]
) -> None:
    with refusal(subject, *words):
        frozen(only, freeze)
