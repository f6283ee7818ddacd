"""Kernels behind addresses are compiled when a training is made, before its threads start, and only those it calls."""

from dataclasses import replace
from types import ModuleType

import pytest

from threadloom.stages.config import NO_DROPOUT, DropoutConfig, Precision
from threadloom.stages.models import Geometry, Lora
from threadloom.stages.step.bits16 import compute as bits16
from threadloom.stages.step.float32 import compute as float32
from threadloom.stages.training.precisions import compute_for

PLAIN = Geometry(13, 4, 1, 1, 8)
ADAPTED = replace(PLAIN, lora=Lora(2, 2.0, frozenset({"attn.c_attn"})))
DROPPING_ADAPTERS = replace(PLAIN, lora=Lora(2, 2.0, frozenset({"attn.c_attn"}), dropout=0.5))
BOTH = {"prepare_lora", "prepare_dropout"}


@pytest.mark.parametrize(
    ("geometry", "dropout", "prepared"),
    [
        (PLAIN, NO_DROPOUT, set()),
        (PLAIN, DropoutConfig(attention=0.5), {"prepare_dropout"}),
        (PLAIN, DropoutConfig(embedding=0.5), {"prepare_dropout"}),
        (ADAPTED, NO_DROPOUT, {"prepare_lora"}),
        (ADAPTED, DropoutConfig(residual=0.5), BOTH),
        (DROPPING_ADAPTERS, NO_DROPOUT, BOTH),
    ],
)
@pytest.mark.parametrize(
    ("precision", "module"),
    [(Precision.FLOAT32, float32), (Precision.BF16, bits16), (Precision.FP16, bits16)],
    ids=lambda value: getattr(value, "value", ""),
)
def test_adapters_and_dropout_are_prepared_if_the_training_has_them(
    precision: Precision,
    module: ModuleType,
    geometry: Geometry,
    dropout: DropoutConfig,
    prepared: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: set[str] = set()
    for name in BOTH:
        monkeypatch.setattr(module, name, lambda *_, name=name: called.add(name))
    compute_for(precision, geometry, 1, dropout=dropout)
    assert called == prepared
