"""Rendering of conversations by a chat template, in a process with limits on time and memory.

A template is a program that came with a tokenizer. The sandbox of jinja2 keeps it from Python's attributes, but not
from loops, recursion and large texts, which only the end of a process stops with certainty.
"""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from threadloom.stages.config import InputError
from threadloom.stages.console import JsonWorkerProcess, WorkerError, module_command
from threadloom.stages.data.conversations.conversation import Message
from threadloom.stages.data.documents import Span

JINJA2 = (3, 1, 6)
"""Oldest version of jinja2 in whose sandbox no escape is known."""

DATE = 1_721_952_000
"""Time that templates see unless SOURCE_DATE_EPOCH is set, 26 July 2024 as in that of Llama 3: with the date of
the day, a text would be another one tomorrow, and a run could not resume."""

WALL_SECONDS = 60.0
"""Time after which a process is ended that does not even use its processor time."""


class ChatTemplateError(InputError):
    """A chat template that cannot be used for any conversation; `subject` is its name."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template with its variables, such as `eos_token`."""

    name: str
    """Its file, or the name of a built-in one."""
    source: str
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process of a template may take."""

    seconds: float = 0.8
    """Processor time of a rendering; one of a usual template takes less than a millisecond."""
    bytes: int = 1 << 30
    """Memory besides that of the start of the process."""


class Wanted(NamedTuple):
    """A rendering that is asked for: of the first messages, with or without the beginning of an answer."""

    messages: int
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text that a template has written."""

    text: str
    generated: tuple[Span, ...]
    """Parts within the template's generation blocks; none for the beginning of the first text that was asked for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for which a template has written nothing."""

    kind: str
    """`refused` if the template has called raise_exception, otherwise the type of an error."""
    message: str

    def __str__(self) -> str:
        return f"the refusal {self.message!r}" if self.kind == "refused" else f"{self.kind}: {self.message}"


class _Limit(NamedTuple):
    """The parts of a message on a template that is stopped."""

    expected: str
    cause: str | None
    hint: str


_OTHER = "choose another template with data.chat_template: a file, or a built-in one such as chatml"
_SLOW = _Limit("a template that writes a conversation in a moment", "it loops, or a conversation is very long", _OTHER)
_LARGE = _Limit("a template that needs little memory", "it makes long texts, or a conversation is very long", _OTHER)
_UNSAFE = _Limit("a template that only writes the messages", "its program leaves the sandbox of chat templates", _OTHER)
_WRONG = _Limit("a chat template in the language of jinja2", None, f"correct it, or {_OTHER}")
_LIMITS: Mapping[str, _Limit] = {
    "time": _SLOW,
    "end": _SLOW,
    "MemoryError": _LARGE,
    "OverflowError": _SLOW,
    "RecursionError": _SLOW,
    "SecurityError": _UNSAFE,
}
"""Kinds of refusals for which a template is not tried again with the next conversation."""


class TemplateRenderer(JsonWorkerProcess):
    """A process that renders conversations by one template. A context manager, for one thread at a time."""

    def __init__(self, template: ChatTemplate, limits: Limits | None = None) -> None:
        """Start it.

        Raises ChatTemplateError without jinja2, for a template with errors, and for one that exceeds a limit.
        """
        _require_jinja2(template.name)
        self.template, self._limits = template, limits or Limits()
        task = {
            "template": template.source,
            "variables": dict(template.variables),
            "seconds": self._limits.seconds,
            "bytes": self._limits.bytes,
            "now": float(os.environ.get("SOURCE_DATE_EPOCH") or DATE),
        }
        super().__init__(module_command("threadloom.stages.child_processes.render_chats"), task)
        try:
            self._exchange()  # the imports of a start are not counted
            reply = self._exchange("compile")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        if "error" in reply:
            self.close()
            raise self._unusable(Refusal(reply["error"], reply["message"]))
        self.marked = bool(reply["marked"])
        """True if the template marks what the assistant generates."""

    @property
    def name(self) -> str:
        """The name of the process in messages."""
        return f"the process that renders {self.template.name}"

    def close(self) -> None:
        """End the process, which is idle."""
        self.__exit__(None, None, None)

    def render(
        self, messages: Sequence[Message], wanted: Sequence[Wanted], tools: Sequence[Any] | None = None
    ) -> list[Rendering | Refusal]:
        """Return the wanted renderings of messages; raises ChatTemplateError if one exceeds a limit of the process.

        The renderer is closed then. `tools` are those that the assistant may call.
        """
        fields, renderings = [message.fields for message in messages], [tuple(each) for each in wanted]
        replies = self._exchange({"messages": fields, "tools": tools, "renderings": renderings})
        first = replies[0].get("text", "")
        found = [_rendering(reply, first) for reply in replies]
        for each in found:
            if isinstance(each, Refusal) and each.kind in _LIMITS:
                self.close()
                raise self._unusable(each)
        return found

    def _exchange(self, *messages: object) -> Any:
        """Send messages and return the reply to them."""
        try:
            for message in messages:
                self.send(message)
            if self.has_replied(WALL_SECONDS):
                return self.receive()
        except WorkerError as error:
            raise self._unusable(self._end()) from error
        self._process.kill()
        raise self._unusable(Refusal("time", f"no text after {WALL_SECONDS:g} s"))

    def _end(self) -> Refusal:
        """Return the reason for which the process has exited."""
        status = self._process.wait()
        if status == -signal.SIGPROF:
            return Refusal("time", f"more than {self._limits.seconds:g} s of processor time for one conversation")
        return Refusal("end", f"the end of {self.name} with status {status}")

    def _unusable(self, refusal: Refusal) -> ChatTemplateError:
        expected, cause, hint = _LIMITS.get(refusal.kind, _WRONG)
        got = refusal.message if refusal.kind in ("time", "end") else str(refusal)
        return ChatTemplateError(self.template.name, expected=expected, got=got, cause=cause, hint=hint)


def _require_jinja2(template: str) -> None:
    """Raise ChatTemplateError unless jinja2 is installed in a version without known ways out of its sandbox."""
    try:
        found = version("jinja2")
    except PackageNotFoundError:
        found = ""
    if tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < JINJA2:
        raise ChatTemplateError(
            template,
            expected=f"jinja2 {'.'.join(map(str, JINJA2))} or newer, which renders chat templates",
            got=found or "no such package",
            hint="pip install 'threadloom[chat]'",
        )


def _rendering(reply: Mapping[str, Any], first: str) -> Rendering | Refusal:
    """Return a rendering from a reply; `first` is the text of the first one, which may begin with it."""
    if "error" in reply:
        return Refusal(reply["error"], reply["message"])
    if "length" in reply:
        return Rendering(first[: reply["length"]], ())
    return Rendering(reply["text"], tuple(Span(start, end) for start, end in reply["generated"]))
