"""The command `certify`: its report, its file, and its refusals."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tests.stages.models.test_huggingface import GEOMETRY
from tests.stages.support import command
from threadloom.stages.config import Precision
from threadloom.stages.tools.certify import certifying
from threadloom.stages.tools.certify.balls import NOTHING, UNBOUNDED, Enclosure
from threadloom.stages.tools.certify.certifying import Certificate, PrecisionErrors, estimated_seconds
from threadloom.stages.tools.certify.comparison import HeadOfModelErrors, LayerErrors
from threadloom.stages.tools.certify.report import enclosure_text, verdicts

FIXTURE = Path(__file__).parents[2] / "resolve" / "fixtures" / "run"
CHECKPOINT = Path(__file__).parents[2] / "checkpoint" / "fixtures" / "step-000004"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    found = command("certify", FIXTURE)
    assert found.status == 1
    assert "python-flint" in found.err and "pip install 'threadloom[certify]'" in found.err


def test_a_run_is_certified_on_its_validation_split(tmp_path: Path) -> None:
    pytest.importorskip("flint")
    found = command("certify", FIXTURE, "--tokens", 4, "--precision", "float32", "--json", tmp_path / "found.json")
    assert found.status == 0, found.err
    assert "float32 is safe for this model on these 4 tokens" in found.out.replace("\n", " ")
    written = json.loads((tmp_path / "found.json").read_text())
    assert (written["tokens"], written["bits"], written["step"]) == (4, 128, 2)
    (errors,) = written["precisions"]
    assert errors["precision"] == "float32"
    assert 0 <= errors["head"]["loss"]["lower"] <= errors["head"]["loss"]["upper"] < 1e-6


def test_a_text_takes_the_place_of_the_validation_split(tmp_path: Path) -> None:
    pytest.importorskip("flint")
    (tmp_path / "text").write_text("ab a")
    found = command("certify", CHECKPOINT, "--tokens", 4, "--precision", "float32", "--text", tmp_path / "text")
    assert found.status == 0, found.err
    assert "3 tokens" in found.out
    (tmp_path / "text").write_text("a")
    assert "at least two tokens" in command("certify", CHECKPOINT, "--tokens", 4, "--text", tmp_path / "text").err
    assert "--text" in command("certify", CHECKPOINT, "--tokens", 4).err


def test_what_cannot_be_certified_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flint")
    assert "at most 8, the context" in command("certify", FIXTURE, "--tokens", 9).err
    assert command("certify", FIXTURE, "--bits", 52).status == 2
    monkeypatch.setattr(certifying, "LONGEST", 0.0)
    options = ("certify", FIXTURE, "--tokens", 2, "--precision", "float32")
    found = command(*options)
    assert found.status == 1 and "--force" in found.err
    assert command(*options, "--force").status == 0


def test_the_estimate_grows_with_the_model() -> None:
    small = estimated_seconds(GEOMETRY, 8, 2, 1e8)
    assert estimated_seconds(replace(GEOMETRY, layers=6), 8, 2, 1e8) > 1.5 * small
    assert estimated_seconds(GEOMETRY, 8, 2, 2e8) == pytest.approx(small / 2)


def certificate(loss: Enclosure = Enclosure(1e-3, 2e-3), undecided: int = 0) -> Certificate:  # noqa: B008 - frozen
    layer = LayerErrors(NOTHING, NOTHING, NOTHING, NOTHING, Enclosure(1e-3, 1e-3), 1e-2)
    of = PrecisionErrors(Precision.BF16, (layer,), HeadOfModelErrors(NOTHING, loss, 1, undecided), 1.0)
    return Certificate(Path("run"), None, GEOMETRY, 8, 128, 1.0, 0.0, (of,), 0.1)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ({}, "bf16 is safe for this model on these 8 tokens: its loss is proven to be within 2.1e-3 nats"),
        ({"loss": Enclosure(0.02, 0.03)}, "bf16 is not safe for this model on these 8 tokens: its loss is at least"),
        ({"loss": UNBOUNDED}, "bf16 is not safe for this model on these 8 tokens: its numbers overflow."),
        ({"loss": Enclosure(0.0, 3.0)}, "Hint: more --bits"),
        ({"undecided": 2}, "2 could not be decided"),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(head: dict[str, Any], sentence: str) -> None:
    (found,) = verdicts(certificate(**head))
    assert sentence in found


def test_a_wrong_kernel_is_reported() -> None:
    good = certificate()
    (errors,) = good.precisions
    wrong = replace(errors.layers[0], own=Enclosure(0.5, 0.6))
    first, _ = verdicts(replace(good, precisions=(replace(errors, layers=(wrong,)),)))
    assert "attention of block 0 in bf16 is wrong: 5.0e-1 off" in first


def test_bounds_are_printed_rounded_outwards() -> None:
    assert enclosure_text(Enclosure(1.21e-3, 1.22e-3)) == "1.3e-3"
    assert enclosure_text(Enclosure(1.29e-4, 1.21e-3)) == "1.2e-4 to 1.3e-3"
    assert enclosure_text(NOTHING) == "0"
    assert enclosure_text(UNBOUNDED) == "overflow"
