"""The table of the crystalline options: what is read from the file of results, and what is measured again."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from benchmarks.crystalline import Job, config_of, equal_seconds, measure_losses
from benchmarks.crystalline_frequency import CLASSES, classes_of, frequency_table, losses_by_frequency
from benchmarks.crystalline_picture import write_plot
from benchmarks.crystalline_results import Result, Results, Speed
from benchmarks.crystalline_rows import BASELINE, CONFIGURATIONS, ROWS, Variant, variants_of
from benchmarks.crystalline_table import markdown_table
from tests.stages.support import story
from threadloom.stages.resolve import validate
from threadloom.stages.run import train

RANK = Variant("rank 64", ("embedding.rank=64",))


def result(variant: Variant, seed: int, loss: float, steps: int = 2000) -> Result:
    return Result(
        config="nanogpt-cpu", variant=variant.name, settings=variant.settings, precision="bf16", seed=seed,
        steps=steps, loss=loss, tokens_per_s=1.0, text=(),
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results.open(tmp_path / "results.jsonl")
    for seed, plain, ranked in ((2, 1.88, 1.90), (3, 1.89, 1.93)):
        found.add(result(Variant(BASELINE), seed, plain))
        found.add(result(RANK, seed, ranked))
    found.add(result(RANK, 4, 9.0))  # a seed that the plain training lacks
    found.add_speed(
        Speed("nanogpt-cpu", RANK.name, RANK.settings, "bf16", ((100.0, 110.0), (200.0, 300.0), (50.0, 60.0)))
    )
    return Results.open(found.path)


def test_losses_are_compared_seed_by_seed(results: Results) -> None:
    difference = results.difference("nanogpt-cpu", RANK, "bf16")
    assert difference is not None
    assert difference.seeds == 2
    assert difference.mean == pytest.approx(0.03)
    assert difference.error == pytest.approx(0.01)  # of 0.02 and 0.04: their deviation 0.0141 / √2


def test_the_speed_is_the_median_of_the_rounds(results: Results) -> None:
    assert results.ratio("nanogpt-cpu", RANK, "bf16") == pytest.approx(1.2)


def test_results_of_other_settings_do_not_count(results: Results) -> None:
    other = Variant(RANK.name, ("embedding.rank=32",))
    assert results.difference("nanogpt-cpu", other, "bf16") is None
    assert results.ratio("nanogpt-cpu", other, "bf16") is None


def test_equal_seconds_scale_the_updates(results: Results) -> None:
    jobs = [Job("nanogpt-cpu", variant, "bf16", 2, None, (), True) for variant in (Variant(BASELINE), RANK)]
    jobs[1] = jobs[1]._replace(variant=Variant(RANK.name, RANK.settings))
    results.speeds = [Speed("nanogpt-cpu", "64 channels", ("model.channels=64",), "bf16", ((100.0, 250.0),))]
    jobs.append(jobs[0]._replace(variant=Variant("64 channels", ("model.channels=64",))))
    assert [job.steps for job in equal_seconds(results, jobs, Console(quiet=True))] == [5000]


def test_the_table_and_the_picture(results: Results, tmp_path: Path) -> None:
    table = markdown_table(results, "nanogpt-cpu", "bf16")
    assert "the plain training ends at 1.8850 (mean of seeds 2, 3)" in table
    assert (
        "| rank 64 | 2 to 4 times as fast | 1.00 | 1.20 (1.10 to 1.50) | +0.0300 ± 0.0100 | not measured | 2 |" in table
    )
    picture = write_plot(results, "nanogpt-cpu", "bf16", tmp_path)
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert write_plot(results, "small", "bf16", tmp_path) is None


@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_every_variant_has_valid_settings(config: str) -> None:
    names = [variant.name for _, variant in variants_of(config)]
    assert len(set(names)) == len(names)
    for _, variant in variants_of(config):
        validate(config_of(Job(config, variant, "bf16", 2, None, (), True)))


def test_every_row_has_a_ceiling_for_its_configurations() -> None:
    assert all(row.ceiling.keys() >= row.variants.keys() for row in ROWS)


def test_texts_are_not_mixed(results: Results) -> None:
    results.require_text("nanogpt-cpu", ())
    results.require_text("small", ("other.txt",))
    with pytest.raises(ValueError, match="source of Python"):
        results.require_text("nanogpt-cpu", ("other.txt",))


def test_nothing_is_trained_twice(results: Results) -> None:
    jobs = [Job("nanogpt-cpu", variant, "bf16", 2, None, (), True) for variant in (Variant(BASELINE), RANK)]
    measure_losses(results, jobs, 1, Console(quiet=True))
    assert len(results.trainings) == 5


def test_classes_have_a_fifth_of_the_text_each() -> None:
    counts = np.random.default_rng(2).permutation(np.floor(1e5 / np.arange(1, 2001)).astype(np.int64))
    classes = classes_of(counts)
    shares = np.bincount(classes, weights=counts) / counts.sum()
    np.testing.assert_allclose(shares, 1 / CLASSES, atol=0.07)  # the most frequent token has an eighth
    for lower in range(CLASSES - 1):
        assert counts[classes == lower].min() >= counts[classes == lower + 1].max()
    assert (np.bincount(classes)[1:] >= np.bincount(classes)[:-1]).all()


@pytest.mark.parametrize("order", ["id", "frequency"])
def test_losses_by_frequency_are_parts_of_the_loss(order: str, tmp_path: Path) -> None:
    config = story(tmp_path, "steps=3", "pictures=false", f"data.token_order={order}", "evaluation.final_batches=999")
    outcome = train(config, tmp_path / "run")
    found = np.array([loss or 0.0 for loss in losses_by_frequency(tmp_path / "run")])
    rows = np.load(tmp_path / "run" / "data" / "validation.npy")[1:]
    rows = rows[: len(rows) // 8 * 8]
    classes = classes_of(np.bincount(np.load(tmp_path / "run" / "data" / "train.npy"), minlength=rows.max() + 1))
    shares = np.bincount(classes[rows], minlength=CLASSES) / len(rows)
    assert outcome.val_loss is not None
    assert (found * shares)[shares > 0].sum() == pytest.approx(outcome.val_loss, rel=1e-5)


def test_the_table_by_frequency_compares_seed_by_seed(tmp_path: Path) -> None:
    found = Results(tmp_path / "results.jsonl")
    assert frequency_table(found, "nanogpt-cpu", "bf16") == ""
    for seed in (2, 3):
        for variant, away in ((Variant(BASELINE), 0.0), (RANK, 0.1 * seed)):
            losses = tuple(1.0 + seed + number + away for number in range(CLASSES))
            found.add(msgspec.structs.replace(result(variant, seed, 2.0), by_frequency=losses))
    table = frequency_table(Results.open(found.path), "nanogpt-cpu", "bf16")
    assert "| plain | 3.5000 | 4.5000 | 5.5000 | 6.5000 | 7.5000 | 2 |" in table
    assert "| rank 64 | +0.2500 | +0.2500 | +0.2500 | +0.2500 | +0.2500 | 2 |" in table
