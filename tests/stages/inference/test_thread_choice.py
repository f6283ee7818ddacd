"""The choice between one thread and a team, from times that a test makes up."""

from collections.abc import Callable

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
    found = threads_of(ThreadChoice(2), 1000, lambda number, threads: float(threads))
    assert found[:12] == [1] * 4 + [2] * 8
    assert found[12:76] == [1] * 64
    assert found[76:84] == [2] * 8
    assert found.count(2) <= 0.13 * 1000


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
