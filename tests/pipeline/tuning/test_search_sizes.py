"""The search over the sizes of a graph, on simulated pipelines whose best sizes are found by trying all of them."""

from dataclasses import replace
from itertools import product

import pytest

from tests.pipeline.tuning.simulated import SimulatedLine, Step
from threadloom.pipeline.observe.statistics import RunStatistics
from threadloom.pipeline.tuning.racing import GAIN, MIN_PAIRS
from threadloom.pipeline.tuning.search import GraphTuning, search_sizes
from threadloom.pipeline.tuning.sizes import GraphSizes
from threadloom.pipeline.tuning.trials import GraphTrial

MS = 1e-3
UNEVEN = (
    Step("read", 0.2 * MS), Step("decode", 7 * MS), Step("resize", 3 * MS), Step("store", MS), Step("out", 0.1 * MS),
)  # fmt: skip


def tuned(line: SimulatedLine, budget: float = 1000.0) -> GraphTuning:
    return search_sizes(line.declared, line.freedoms, line, budget)


def best_rate(line: SimulatedLine, most: int) -> float:
    """Return the speed of the best numbers of workers up to `most`, with the declared capacities."""
    inner = [step.name for step in line.steps[1:-1]]
    rates = []
    for counts in product(range(1, most + 1), repeat=len(inner)):
        sizes = line.declared
        for name, workers in zip(inner, counts, strict=True):
            sizes = sizes.changed(name, workers=workers)
        rates.append(line.rate(sizes))
    return max(rates)


@pytest.mark.parametrize("cores", [2.0, 4.0])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_the_choice_is_as_fast_as_the_best_of_all(cores: float, jitter: float) -> None:
    line = SimulatedLine([replace(step, jitter=jitter) for step in UNEVEN], cores=cores, noise=0.01)
    found = tuned(line)
    assert line.rate(found.chosen) >= 0.95 * best_rate(line, 4)
    assert found.complete


def test_the_numbers_of_workers_follow_the_durations_where_cores_abound() -> None:
    line = SimulatedLine([Step("read", 1 * MS), Step("decode", 8 * MS), Step("resize", 4 * MS), Step("out", 0.1 * MS)])
    found = tuned(line)
    assert line.rate(found.chosen) == pytest.approx(1000.0, rel=0.05)  # that of the source
    assert found.chosen["decode"].workers >= 8
    assert found.chosen["resize"].workers >= 4
    assert found.limiting == "read"


def test_two_runs_choose_sizes_of_nearly_equal_speed() -> None:
    rates = []
    for seed in range(8):
        line = SimulatedLine([replace(step, jitter=0.3) for step in UNEVEN], cores=3.0, noise=0.01)
        line.rng.seed(seed)
        rates.append(line.rate(tuned(line).chosen))
    assert min(rates) >= 0.95 * max(rates)


def test_balanced_stages_get_workers_together() -> None:
    line = SimulatedLine([Step("read", 0.1 * MS), Step("a", 4 * MS), Step("b", 4 * MS), Step("out", 0.01 * MS)])
    found = tuned(line)
    assert found.tried[0].choice["a"].workers == found.tried[0].choice["b"].workers == 2
    assert line.rate(found.chosen) > 5 * line.rate(found.declared)


def test_bursts_get_a_larger_channel() -> None:
    line = SimulatedLine([Step("read", 0.1 * MS), Step("a", MS, 1.0), Step("b", MS, 1.0), Step("out", 0.001 * MS)])
    line.items = 1000
    freedoms = {name: replace(freedom, workers=False, why_fixed="tested") for name, freedom in line.freedoms.items()}
    found = search_sizes(line.declared, freedoms, line, 1000.0)
    assert all(size.workers == 1 for size in found.chosen.nodes)
    assert any("full and empty alternately" in row.why for row in found.tried)
    assert line.rate(found.chosen) >= 1.05 * line.rate(found.declared)


def test_idle_workers_are_taken_away_if_they_slow_the_others() -> None:
    class Crowded(SimulatedLine):
        """A machine on which every worker, busy or not, makes calls 3 % slower."""

        def run(self, sizes: GraphSizes) -> RunStatistics:
            return self._run(sizes, 1.0 + 0.03 * sizes.total[0])

    line = Crowded([Step("read", 4 * MS), Step("a", 1 * MS), Step("out", 0.01 * MS)])
    declared = line.declared.changed("a", workers=12)
    found = search_sizes(declared, line.freedoms, line, 1000.0)
    assert found.chosen["a"].workers < 4
    assert "workers waited for input" in found.tried[0].why


def test_noise_rarely_replaces_the_declared_sizes() -> None:
    changed = 0
    for seed in range(60):
        line = SimulatedLine([Step("read", 1 * MS), Step("a", 1 * MS), Step("out", 0.01 * MS)], noise=0.05, items=60)
        line.rng.seed(seed)
        found = tuned(line)
        if found.chosen != found.declared:
            changed += 1
            assert found.final is not None
            assert found.final.ratio >= 1.0 + GAIN
        else:
            assert found.reason.startswith("the declared sizes are kept")
    assert changed <= 5


@pytest.mark.parametrize("cost", [0.2, 0.9, 3.0, 8.0, 40.0])
def test_the_budget_is_kept(cost: float) -> None:
    line = SimulatedLine(UNEVEN, cores=2.0, cost=cost)
    found = tuned(line, 60.0)
    assert found.seconds == pytest.approx(cost * len(line.tried))
    assert found.seconds <= max(60.0, cost)
    if found.final is not None:
        assert len(found.final.ratios) >= MIN_PAIRS
    if cost > 8:
        assert "budget is too short" in found.reason
        assert not found.complete


def test_costs_that_vary_keep_the_budget_within_a_tenth() -> None:
    class Varying(SimulatedLine):
        def __call__(self, sizes: GraphSizes) -> GraphTrial:
            return replace(super().__call__(sizes), seconds=self.rng.uniform(0.5, 1.5))

    for seed in range(10):
        line = Varying(UNEVEN, cores=2.0)
        line.rng.seed(seed)
        assert tuned(line, 40.0).seconds <= 44.0


def test_sizes_that_fail_are_never_chosen() -> None:
    class Fragile(SimulatedLine):
        """Several workers of `decode` raise."""

        def __call__(self, sizes: GraphSizes) -> GraphTrial:
            trial = super().__call__(sizes)
            return replace(trial, score=0.0, failure="stage 'decode' raised") if sizes["decode"].workers > 1 else trial

    line = Fragile(UNEVEN, cores=4.0)
    found = tuned(line)
    assert found.chosen["decode"].workers == 1
    assert any(row.failure for row in found.tried)
    assert not any(row.accepted for row in found.tried if row.failure)


def test_a_choice_that_fails_in_the_last_comparison_is_not_chosen() -> None:
    class LateFailure(SimulatedLine):
        def __call__(self, sizes: GraphSizes) -> GraphTrial:
            trial = super().__call__(sizes)
            fails = sizes != self.declared and self.tried.count(sizes) > 5
            return replace(trial, score=0.0, failure="raised") if fails else trial

    line = LateFailure(UNEVEN, cores=4.0)
    assert tuned(line).chosen == line.declared


def test_every_row_has_the_bottleneck_before_it_with_figures() -> None:
    found = tuned(SimulatedLine(UNEVEN, cores=2.0))
    first = found.tried[0]
    assert first.base == found.declared
    assert first.why.startswith("decode is the bottleneck: its 1 worker is busy 100%")
    assert "resize waits for items from decode" in first.why
    assert "read waits for capacity of decode" in first.why
    assert all("%" in row.why for row in found.tried)


def test_progress_and_rows_are_reported_in_order() -> None:
    line, steps, rows = SimulatedLine(UNEVEN, cores=2.0), list[str](), list[object]()
    found = search_sizes(line.declared, line.freedoms, line, 1000.0, steps.append, rows.append)
    assert tuple(rows) == found.tried
    assert "because decode is the bottleneck" in steps[0]
    assert steps[-1] == "the best sizes are compared with the declared ones"
