"""The choice between one thread and a team, from times that a test makes up."""

from collections.abc import Callable
from itertools import pairwise

from threadloom.stages.inference.thread_choice import ThreadChoice


def threads_of(choice: ThreadChoice, tokens: int, seconds: Callable[[int, int], float]) -> list[int]:
    """Return the threads of each token; `seconds` is the time of a token, given its number and its threads."""
    found = []
    for number in range(tokens):
        found.append(choice.threads)
        choice.record(seconds(number, choice.threads))
    return found


def test_a_team_that_is_faster_decodes_all_but_the_first_tokens() -> None:
    found = threads_of(ThreadChoice(3), 500, lambda number, threads: 1.0 / threads)
    assert found == [1] * 4 + [3] * 496


def test_the_first_token_of_a_block_does_not_count() -> None:
    """It starts the threads, or wakes them."""
    found = threads_of(ThreadChoice(2), 100, lambda number, threads: 100.0 if number == 4 else 1.0 / threads)
    assert found == [1] * 4 + [2] * 96


def test_a_team_that_is_slower_decodes_few_tokens() -> None:
    found = threads_of(ThreadChoice(2), 10_000, lambda number, threads: float(threads))
    starts = [number for number in range(1, 10_000) if found[number - 1 : number + 1] == [1, 2]]
    assert [found[start : start + 6] for start in starts] == [[2] * 5 + [1]] * len(starts)
    lengths = [second - first - 5 for first, second in pairwise(starts)]
    assert lengths == [64, 128, 256, 512] + [1024] * 8
    assert starts[0] == 4


def test_a_trial_that_cannot_be_won_is_short() -> None:
    found = threads_of(ThreadChoice(2), 60, lambda number, threads: 10.0 if threads == 2 else 1.0)
    assert found == [1] * 4 + [2] * 2 + [1] * 54


def test_a_machine_that_becomes_busy_and_quiet_again() -> None:
    def seconds(number: int, threads: int) -> float:
        return 5.0 * threads if 200 <= number < 400 else 1.0 / threads

    found = threads_of(ThreadChoice(2), 700, seconds)
    assert found[4:200] == [2] * 196
    assert found[230:400].count(2) <= 24
    assert found[500:] == [2] * 200


def test_tokens_that_take_longer_with_the_context_keep_the_team() -> None:
    """The time of one thread is measured again before it is preferred."""
    found = threads_of(ThreadChoice(2), 1000, lambda number, threads: (1.0 + number / 100) / threads)
    assert found.count(1) <= 30


def test_one_thread_has_no_choice() -> None:
    assert threads_of(ThreadChoice(1), 50, lambda number, threads: 1.0) == [1] * 50
