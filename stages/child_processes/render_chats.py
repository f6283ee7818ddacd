"""Render chat templates, which may be anyone's programs, under limits on time and memory.

Reads lines of JSON: first the template with its variables and limits, then conversations with the renderings that are
wanted of each. The environment is that of transformers' `apply_chat_template`. A rendering that takes more than its
time ends this process by SIGPROF: the limit is one of processor time, so a busy machine makes no difference.

It imports the standard library and jinja2 alone: it starts fast, and little but the template is in its memory.
"""

import json
import re
import resource
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import FunctionLoader, Template, TemplateError, ext, nodes, sandbox, utils
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Macro

_START, _END = (f"{secrets.token_hex(12)}{letter}" for letter in "se")
"""Marks around what the assistant generates, which no message contains: they are new in each process."""

_MARKS = re.compile(f"{_START}|{_END}")


class Refused(TemplateError):
    """The template has called raise_exception."""


class Generation(ext.Extension):
    """The block `{% generation %}` around what the assistant generates, which is marked in the text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it
    used = False
    """True if the template has such a block."""

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the node of the block at the position of the parser."""
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{_START}{caller()}{_END}"


class _Dictionary:
    """The function `dict` of templates, without the other attributes of the type."""

    def __call__(self, *items: Any, **keys: Any) -> dict[Any, Any]:
        return dict(*items, **keys)

    def fromkeys(self, *items: Any) -> dict[Any, Any]:
        return dict.fromkeys(*items)


class _Namespace(utils.Namespace):
    """The function `namespace` of templates, without names that Python reserves."""

    def __init__(*arguments: Any, **keys: Any) -> None:  # a key may be called self
        own, *items = arguments
        attributes = dict(*items, **keys)
        for name in attributes:
            _require_plain(name)
        utils.Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template cannot store the attribute {name!r} of a namespace")


def _raise_exception(message: object) -> None:
    raise Refused(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _load_nothing(name: str) -> str:
    raise SecurityError(f"a chat template imports no other one, such as {name!r}")


def environment(now: datetime) -> sandbox.ImmutableSandboxedEnvironment:
    """Return the environment in which chat templates run."""
    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, ext.loopcontrols],
        loader=FunctionLoader(_load_nothing),
    )
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
        "dict": _Dictionary(),
        "namespace": _Namespace,
    }
    return made


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a rendered text without marks, and the ranges that they enclose; raises TemplateError for unequal marks.

    A block within a block is part of the outer one.
    """
    pieces, generated, length, opened, depth, last = list[str](), list[tuple[int, int]](), 0, 0, 0, 0
    for mark in _MARKS.finditer(text):
        pieces.append(text[last : mark.start()])
        length += len(pieces[-1])
        last = mark.end()
        starts = mark[0] == _START
        if starts and not depth:
            opened = length
        depth += 1 if starts else -1
        if depth < 0:
            break
        if not depth:
            generated.append((opened, length))
    if depth:
        raise TemplateError("it cuts the text of a generation block in two")
    return "".join([*pieces, text[last:]]), generated


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End the process when the block has taken so much processor time; Python need not be able to react."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(size: int) -> None:
    """Let the process have `size` bytes more than now, where the system has such a limit."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, most))
    except (OSError, ValueError):
        return


def _failure(error: BaseException) -> dict[str, Any]:
    kind = "refused" if isinstance(error, Refused) else type(error).__name__
    return {"error": kind, "message": str(error)[:2000]}


def _renderings(template: Template, variables: dict[str, Any], seconds: float, line: str) -> Iterator[dict[str, Any]]:
    """Yield what is replied for each rendering that a line asks for.

    A text with which the first one begins is not repeated: there may be many of them, of a long conversation.
    """
    request, first = json.loads(line), None
    for count, prompt in request["renderings"]:
        messages = request["messages"][:count]
        try:
            with _time_limit(seconds):
                text, generated = unmarked(
                    template.render(
                        variables,
                        messages=messages,
                        add_generation_prompt=prompt,
                        tools=request["tools"],
                        documents=None,
                    )
                )
            if first is not None and first.startswith(text):
                yield {"length": len(text)}
                continue
            first = text if first is None else first
            yield {"text": text, "generated": generated}
        except Exception as error:
            yield _failure(error)


def main() -> None:
    """Reply to each line of the input until it ends."""
    replies, sys.stdout = sys.stdout, sys.stderr

    def reply(message: object) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    task = json.loads(sys.stdin.readline())
    seconds = task["seconds"]
    made = environment(datetime.fromtimestamp(task["now"], UTC))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _limit_memory(task["bytes"])
    reply("ready")
    sys.stdin.readline()
    try:
        with _time_limit(seconds):
            template = made.from_string(task["template"])
        reply({"marked": _generation(made).used})
    except Exception as error:
        reply(_failure(error))
        return
    for line in sys.stdin:
        try:
            reply(list(_renderings(template, task["variables"], seconds, line)))
        except MemoryError as error:  # the conversation itself, or its texts together, are too large
            reply([_failure(error)])


def _generation(made: sandbox.ImmutableSandboxedEnvironment) -> Generation:
    found = made.extensions[Generation.identifier]
    assert isinstance(found, Generation)
    return found


if __name__ == "__main__":
    main()
