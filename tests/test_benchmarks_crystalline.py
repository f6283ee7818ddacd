"""The table of the crystalline options: what is read from the file of results, and what is measured again."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.crystalline import Job, config_of, equal_seconds, measure_losses
from benchmarks.crystalline_picture import write_plot
from benchmarks.crystalline_results import Result, Results, Speed
from benchmarks.crystalline_rows import BASELINE, CONFIGURATIONS, ROWS, Variant, variants_of
from benchmarks.crystalline_table import markdown_table
from threadloom.stages.resolve import validate

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
