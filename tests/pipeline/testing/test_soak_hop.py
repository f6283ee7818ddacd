"""The handoff benchmark: every contestant is checked and timed, and the medians are reported."""

import json

import pytest

from benchmarks.hop import CONTESTANTS, hop_table, idle, measure_hops, summary

pytestmark = pytest.mark.timeout(60)

NAMES = [name for name in CONTESTANTS if name != "SPDL"]


def test_every_contestant_is_measured_and_the_medians_are_reported() -> None:
    found = {capacity: measure_hops(NAMES, capacity, 200, 2) for capacity in (2, 64)}
    assert all(len(each) == 2 and min(each) > 0 for figures in found.values() for each in figures.values())
    waits = idle(seconds=0.05)
    result = json.loads(json.dumps(summary(found, waits)))
    assert result["spdl"] is None
    text = hop_table(result)
    assert all(f"| {name} |" in text for name in NAMES)
    assert "capacity 2: at most 1.3 times queue.Queue: " in text
    assert "SPDL not installed" in text


def test_aims_are_judged_by_the_medians() -> None:
    rounds = {"queue.Queue": [9.0, 10.0, 99.0], "ours": [12.0, 13.0, 50.0], "ours, traced": [14.5] * 3}
    aims = summary({2: rounds}, {})["capacities"]["2"]["aims"]
    assert aims == {"a trace costs at most 1 µs per event": False, "at most 1.3 times queue.Queue": True}
