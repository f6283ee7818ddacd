"""The start of the command line: stop signals before there is a command, and messages of libraries."""

import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from loguru import logger

from threadloom import __main__ as entry
from threadloom.stages.console import WorkerError, configure, logged_messages, module_output

pytestmark = pytest.mark.timeout(30)

ROOT = Path(__file__).parents[2]
NEW_MODULES = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import threadloom.__main__
print(*sorted(set(sys.modules) - before))
"""


class Ended(BaseException):
    """The end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield statuses
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_before_the_handlers_are_set_is_one_line(
    ends: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_handle_stop_signals", interrupted)
    with pytest.raises(Ended):
        entry.run()
    assert ends == [130]
    assert capfd.readouterr().err == "stopped by Ctrl-C\n"


@pytest.mark.parametrize(("number", "name"), [(2, "Ctrl-C"), (15, "SIGTERM"), (1, "SIGHUP")])
def test_a_stop_signal_while_the_command_line_is_loaded_is_one_line(
    number: int, name: str, ends: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def loading(**_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("threadloom.stages.cli.main", loading)
    with pytest.raises(Ended):
        entry.run()
    assert ends == [128 + number]
    assert capfd.readouterr().err == f"stopped by {name}\n"


def test_the_handlers_are_set_before_any_module_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_MODULES, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["threadloom", "threadloom.__main__"]


@pytest.mark.filterwarnings("always")
def test_messages_of_libraries_are_lines_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    configure()
    try:
        with logged_messages():
            logging.getLogger("matplotlib").warning("a temporary folder %s", "/tmp/x")
            warnings.warn("an old option", stacklevel=1)
            try:
                raise ValueError("inner")
            except ValueError:
                logging.getLogger("other").exception("it failed")
        said = capfd.readouterr().err.splitlines()
        assert [line.split(maxsplit=2)[2] for line in said] == [
            "WARNING a temporary folder /tmp/x", "WARNING an old option", "ERROR   it failed",
        ]  # fmt: skip
        assert logging.getLogger().handlers == before
    finally:
        logger.remove()


def test_control_characters_in_a_message_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    try:
        logger.info("cannot read {}", "a\x1b]0;title\x07\x9b.txt")
        assert capfd.readouterr().err.endswith("cannot read a^[]0;title^G<U+009B>.txt\n")
    finally:
        logger.remove()


def test_a_child_process_that_fails_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "child_of_a_test.py").write_text(
        "import os, sys; sys.stdout.write(os.environ['ANSWER'] + sys.stdin.read()); sys.exit(int(sys.argv[1]))"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        run = partial(module_output, "child_of_a_test", request=b"!", environment={"ANSWER": "yes"})
        assert run("0") == b"yes!"
        with pytest.raises(WorkerError, match="exited with status 3"):
            run("3")
    finally:
        sys.path.remove(str(tmp_path))
