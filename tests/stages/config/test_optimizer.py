"""Groups of tensors with rates of their own: the last group with a tensor decides, useless ones are refused."""

import pytest

from tests.stages.resolve.support import refusal
from threadloom.stages.config import OptimizerConfig, OptimizerGroup, TensorRates
from threadloom.stages.models import Geometry, parameter_shapes

GEOMETRY = Geometry(11, 8, 2, 3, 15)
NAMES = list(parameter_shapes(GEOMETRY))
MATRICES = {"wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight"}


def rates(*groups: OptimizerGroup, frozen: frozenset[str] = frozenset()) -> dict[str, TensorRates]:
    return dict(OptimizerConfig(weight_decay=0.1, groups=groups).tensor_rates(GEOMETRY, frozen))


def test_the_last_group_with_a_tensor_decides_each_of_the_two() -> None:
    found = rates(
        OptimizerGroup(match="*", lr=0.5),
        OptimizerGroup(match="transformer.h.*.attn.*", decay=0.3),
        OptimizerGroup(match="*.bias", decay=0.0),
        OptimizerGroup(match="wte*", lr=2.0, decay=0.7),
    )
    attention = {"qkv_weight", "attn_proj_weight"}
    decay = {name: 0.3 if name in attention else 0.1 * (name in MATRICES) for name in NAMES} | {"wte": 0.7}
    assert list(found) == NAMES
    assert found == {name: TensorRates(2.0 if name == "wte" else 0.5, decay[name]) for name in NAMES}


def test_without_groups_there_are_no_rates_and_frozen_tensors_have_none() -> None:
    assert rates() == {}
    assert list(rates(OptimizerGroup(match="w*", lr=0.5), frozen=frozenset(("wte",)))) == NAMES[1:]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (OptimizerGroup(match="nothing", lr=1.0), ["'nothing', which matches none", "wte, wpe"]),
        (OptimizerGroup(match="transformer.h.0.*", lr=1.0), ["a part of", "transformer.h.1."]),
        (OptimizerGroup(match="wte", lr=1.0), ["'wte', whose tensors are frozen", "wpe"]),
        (OptimizerGroup(match="wpe"), ["lr or decay", "neither in the group 'wpe'", '"decay": 0']),
        (OptimizerGroup(match="wpe", lr=-1.0), ["lr from 0", "-1.0 in the group 'wpe'"]),
        (OptimizerGroup(match="wpe", decay=float("nan")), ["decay from 0", "nan"]),
    ],
)
def test_groups_that_change_nothing_are_refused(group: OptimizerGroup, words: list[str]) -> None:
    with refusal("optimizer.groups", *words):
        rates(group, frozen=frozenset(("wte",)))
