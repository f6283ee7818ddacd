"""Tests of the decisions of the controller: made-up loads, and lines of stages whose throughput is known."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline.policy import BalanceRules, StageLoad, WorkerBalancer, WorkerMove

pytestmark = pytest.mark.timeout(60)

RULES = BalanceRules(confirm=2, settle=1, judge=2, rest=4)
TRIAL = RULES.settle + RULES.judge
"""Intervals from a move to its judgement."""


def load(
    name: str, workers: int, busy: float = 0.0, *, starved: float = 0.0, blocked: float = 0.0, rate: float = 10.0
) -> StageLoad:
    return StageLoad(name, workers, busy, starved, blocked, items=100, rate=rate)


def idle_and_busy(rate: float = 10.0, givers: int = 3, receivers: int = 1) -> list[StageLoad]:
    """Return the loads of a stage that starves and of one that is the bottleneck."""
    return [load("decode", givers, 0.18, starved=0.82), load("encode", receivers, 0.97, starved=0.03, rate=rate)]


def balancer(budget: int = 4, rules: BalanceRules = RULES, **limits: int) -> WorkerBalancer:
    return WorkerBalancer(limits or {"decode": 4, "encode": 4}, budget, rules)


def moved(giver: str | None, receiver: str | None, undo: bool = False) -> tuple[str | None, str | None, bool]:
    return giver, receiver, undo


def summary(move: WorkerMove | None) -> tuple[str | None, str | None, bool] | None:
    return None if move is None else (move.giver, move.receiver, move.undo)


def after_a_move(policy: WorkerBalancer) -> WorkerMove:
    """Let the first move be justified, and return it."""
    assert policy.decide(idle_and_busy()) is None
    move = policy.decide(idle_and_busy())
    assert move is not None
    return move


def test_two_consecutive_intervals_move_a_worker_with_the_figures() -> None:
    move = after_a_move(balancer())
    reason = "moved a worker from 'decode' (starved 82% of the time) to 'encode' (busy 97%)"
    assert move == WorkerMove("decode", "encode", reason)


def test_a_blocked_stage_gives_too() -> None:
    loads = [load("encode", 1, 0.97), load("store", 3, 0.2, blocked=0.8)]
    policy = balancer(encode=4, store=4)
    assert policy.decide(loads) is None
    move = policy.decide(loads)
    assert move is not None and "'store' (blocked 80% of the time)" in move.reason


def test_an_interval_that_does_not_justify_the_move_begins_again() -> None:
    policy = balancer()
    calm = [load("decode", 3, 0.5, starved=0.5), load("encode", 1, 0.5, starved=0.5)]
    for loads in (idle_and_busy(), calm, idle_and_busy()):
        assert policy.decide(loads) is None
    assert policy.decide(idle_and_busy()) is not None


@pytest.mark.parametrize(
    "loads",
    [
        [load("decode", 1, 0.1, starved=0.9), load("encode", 3, 1.0)],  # the only worker
        [load("decode", 3, 0.1, starved=0.9), load("encode", 4, 1.0)],  # the limit
        [load("decode", 2, 0.5, starved=0.5), load("encode", 1, 1.0)],  # the one that is left would be the bottleneck
        [load("decode", 3, 0.1, starved=0.1), load("encode", 1, 1.0)],  # it waits for a resource
        [load("decode", 3, 0.1, starved=0.9), load("encode", 1, 0.1)],  # nothing is busy: `encode` waits for a resource
        [load("decode", 3, 0.1, starved=0.9), load("encode", 1, 0.8, starved=0.2)],
        [load("read", 3, 0.1, starved=0.9), load("encode", 1, 1.0)],  # not controlled
        [],
    ],
)
def test_nothing_moves(loads: list[StageLoad]) -> None:
    policy = balancer(budget=sum(each.workers for each in loads))
    assert [policy.decide(loads) for _ in range(10)] == [None] * 10


def test_the_idlest_of_several_gives_and_the_busiest_gets() -> None:
    loads = [
        load("a", 2, 0.3, starved=0.7), load("b", 4, 0.1, starved=0.9), load("c", 1, 0.9), load("d", 1, 0.95)
    ]  # fmt: skip
    policy = balancer(budget=8, a=9, b=9, c=9, d=9)
    policy.decide(loads)
    assert summary(policy.decide(loads)) == moved("b", "d")


def test_an_unused_worker_of_the_budget_is_started() -> None:
    policy = balancer(budget=5)
    policy.decide(idle_and_busy())
    move = policy.decide(idle_and_busy())
    assert move == WorkerMove(None, "encode", "started a worker of 'encode' (busy 97%): 4 of 5 were in use")
    for _ in range(TRIAL - 1):
        assert policy.decide(idle_and_busy(receivers=2)) is None
    undo = policy.decide(idle_and_busy(receivers=2))
    assert summary(undo) == moved("encode", None, undo=True)
    assert undo is not None and undo.reason.startswith("ended a worker of 'encode': ")


def test_a_move_that_did_not_help_is_taken_back_and_not_repeated() -> None:
    policy = balancer()
    after_a_move(policy)
    same = idle_and_busy(rate=10.2, givers=2, receivers=2)
    assert [policy.decide(same) for _ in range(TRIAL - 1)] == [None] * (TRIAL - 1)
    move = policy.decide(same)
    assert summary(move) == moved("encode", "decode", undo=True)
    assert move is not None and move.reason == (
        "moved a worker back from 'encode' to 'decode': 'encode' started 10 items/s before it got the worker and "
        "10.2 items/s after"
    )
    assert [policy.decide(idle_and_busy()) for _ in range(100)] == [None] * 100


def test_a_refused_move_is_tried_again_after_the_load_has_changed() -> None:
    policy = balancer()
    after_a_move(policy)
    for _ in range(TRIAL):
        policy.decide(idle_and_busy(givers=2, receivers=2))
    other = [load("decode", 3, 0.9), load("encode", 1, 0.5, blocked=0.5)]  # nobody gives: `encode` has one worker
    assert [policy.decide(other) for _ in range(3)] == [None] * 3
    after_a_move(policy)


def test_a_move_that_slowed_the_giver_down_is_refused_for_that_giver_only() -> None:
    policy = balancer(budget=7, decode=4, encode=4, store=4)
    others = load("store", 3, 0.2, starved=0.8)
    for _ in range(2):
        move = policy.decide([*idle_and_busy(), others])
    assert summary(move) == moved("decode", "encode")
    for _ in range(TRIAL):
        move = policy.decide([*idle_and_busy(rate=6.0, givers=2, receivers=2), others])
    assert summary(move) == moved("encode", "decode", undo=True)
    for _ in range(RULES.settle + 2):
        move = policy.decide([*idle_and_busy(), others])
    assert summary(move) == moved("store", "encode")


def test_a_stage_that_a_worker_has_helped_is_not_robbed_at_once() -> None:
    policy = balancer()
    after_a_move(policy)
    for _ in range(TRIAL):
        assert policy.decide(idle_and_busy(rate=20.0, givers=2, receivers=2)) is None
    turned = [load("decode", 2, 1.0), load("encode", 2, 0.1, blocked=0.9)]
    found = [summary(policy.decide(turned)) for _ in range(RULES.rest + RULES.confirm)]
    first = next(place for place, each in enumerate(found) if each is not None)
    assert (first, found[first]) == (RULES.rest - 1 + RULES.confirm - 1, moved("encode", "decode"))


def test_a_move_that_relieved_one_of_two_bottlenecks_is_kept() -> None:
    policy = balancer(budget=6, read=4, decode=4, encode=4)
    both = [load("read", 4, 0.1, blocked=0.9), load("decode", 1, 1.0), load("encode", 1, 0.99)]
    policy.decide(both)
    assert summary(policy.decide(both)) == moved("read", "decode")
    one = [load("read", 3, 0.13, blocked=0.87), load("decode", 2, 0.5, blocked=0.5), load("encode", 1, 0.99)]
    found = [summary(policy.decide(one)) for _ in range(TRIAL + 2)]
    assert found == [*[None] * (TRIAL + 1), moved("read", "encode")]


def test_changes_by_the_caller_end_the_trial() -> None:
    policy = balancer(budget=9)
    after_a_move(policy)
    for _ in range(TRIAL + 5):
        assert summary(policy.decide(idle_and_busy(rate=1.0, givers=1, receivers=4))) is None


def test_a_dropped_stage_neither_gives_nor_gets() -> None:
    for name in ("decode", "encode"):
        policy = balancer()
        after_a_move(policy)
        policy.drop(name)
        policy.drop(name)
        assert [policy.decide(idle_and_busy()) for _ in range(10)] == [None] * 10
        assert name not in policy.stages


def test_an_interval_is_too_short_if_a_bottleneck_has_started_fewer_items_than_workers() -> None:
    policy = balancer()
    slow = replace(load("encode", 3, 1.0), items=2)
    assert not policy.is_measurable([load("decode", 1, 0.1), slow])
    assert policy.is_measurable([load("decode", 1, 0.1), replace(slow, items=3)])
    assert policy.is_measurable([replace(slow, busy=0.1), replace(slow, name="other")])


def test_invalid_rules_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"saturated is a share between 0 and 1, got 85"):
        BalanceRules(saturated=85)
    with pytest.raises(ValueError, match=r"confirm is at least 1 intervals, got 0"):
        BalanceRules(confirm=0)


class Line:
    """A line of stages with channels that are never the limit: a model with known throughput.

    A stage with n workers and calls of t seconds handles n / t items per second. The slowest determines the rate;
    stages before it are blocked and those after it starve.
    """

    def __init__(self, calls: Mapping[str, float], workers: Mapping[str, int]) -> None:
        self.calls, self.workers = dict(calls), dict(workers)

    @property
    def rate(self) -> float:
        return min(self.workers[name] / self.calls[name] for name in self.calls)

    def loads(self) -> list[StageLoad]:
        rate, found = self.rate, []
        slowest = min(self.calls, key=lambda name: self.workers[name] / self.calls[name])
        upstream = True
        for name, seconds in self.calls.items():
            upstream &= name != slowest
            busy = rate * seconds / self.workers[name]
            idle = {"blocked": 1.0 - busy} if upstream else {"starved": 1.0 - busy}
            found.append(load(name, self.workers[name], busy, rate=rate, **idle))
        return found

    def apply(self, move: WorkerMove | None) -> None:
        for name, change in ((move.giver, -1), (move.receiver, 1)) if move else ():
            if name is not None:
                self.workers[name] += change


durations = st.lists(st.floats(0.01, 10.0), min_size=2, max_size=4)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    calls = {f"s{place}": seconds for place, seconds in enumerate(draw(durations))}
    return Line(calls, {name: draw(st.integers(1, 4)) for name in calls})


def leximin(line: Line) -> list[float]:
    return sorted(line.workers[name] / line.calls[name] for name in line.calls)


@given(lines(), st.integers(0, 3), st.integers(1, 8))
def test_a_line_ends_in_a_stable_state_that_is_at_least_as_fast(line: Line, unused: int, limit: int) -> None:
    budget = sum(line.workers.values()) + unused
    limits = {name: max(limit, count) for name, count in line.workers.items()}
    policy = WorkerBalancer(limits, budget, RULES)
    before, moves = leximin(line), []
    for interval in range(600):
        move = policy.decide(line.loads())
        line.apply(move)
        if move is not None:
            moves.append(interval)
        assert all(1 <= count <= limits[name] for name, count in line.workers.items())
        assert sum(line.workers.values()) <= budget
    assert not any(interval >= 400 for interval in moves), "workers oscillate"
    assert leximin(line) >= before


@given(lines())
def test_a_line_comes_close_to_the_best_distribution_of_its_workers(line: Line) -> None:
    """The best one is found by trying all. A stage that could still give a worker would be busier than `spare` then."""
    budget = sum(line.workers.values())
    best = max(
        min(count / seconds for count, seconds in zip(counts, line.calls.values(), strict=True))
        for counts in itertools.product(range(1, budget + 1), repeat=len(line.calls))
        if sum(counts) == budget
    )
    policy = WorkerBalancer(dict.fromkeys(line.calls, budget), budget, RULES)
    for _ in range(300):
        line.apply(policy.decide(line.loads()))
    assert line.rate >= RULES.spare * best * (1 - 1e-9)


shares = st.floats(0.0, 1.0)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 4), shares, shares), min_size=2),
    st.integers(0, 2),
)
def test_shares_that_no_move_changes_cause_finitely_many(
    stages: dict[str, tuple[int, float, float]], more: int
) -> None:
    workers = {name: count for name, (count, _, _) in stages.items()}
    budget = sum(workers.values()) + more
    policy = WorkerBalancer(dict.fromkeys(stages, 6), budget, RULES)
    moves: list[int] = []
    for interval in range(400):
        loads = [
            load(name, workers[name], busy, starved=(1 - busy) * part, blocked=(1 - busy) * (1 - part))
            for name, (_, busy, part) in stages.items()
        ]
        move = policy.decide(loads)
        for name, change in ((move.giver, -1), (move.receiver, 1)) if move else ():
            if name is not None:
                workers[name] += change
                moves.append(interval)
        assert all(count >= 1 for count in workers.values())
        assert sum(workers.values()) <= budget
    assert max(moves, default=0) < 300
    assert workers == {name: count for name, (count, _, _) in stages.items()}, "each move was taken back"


@given(
    st.lists(
        st.fixed_dictionaries({name: st.tuples(shares, shares, st.floats(0.0, 100.0)) for name in "abc"}), max_size=60
    ),
    st.integers(0, 3),
)
def test_no_loads_at_all_break_the_bounds(history: list[dict[str, tuple[float, float, float]]], more: int) -> None:
    workers, limits = {"a": 3, "b": 1, "c": 2}, {"a": 3, "b": 4, "c": 5}
    budget = 6 + more
    policy = WorkerBalancer(limits, budget, BalanceRules(confirm=1, settle=0, judge=1, rest=0))
    for state in history:
        loads = [
            load(name, workers[name], busy, starved=(1 - busy) * part, rate=rate)
            for name, (busy, part, rate) in state.items()
        ]
        move = policy.decide(loads)
        for name, change in ((move.giver, -1), (move.receiver, 1)) if move else ():
            if name is not None:
                workers[name] += change
        assert all(1 <= workers[name] <= limits[name] for name in workers)
        assert sum(workers.values()) <= budget
