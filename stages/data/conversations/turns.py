"""The parts of a rendered conversation that the assistant writes, whose loss counts.

A template that marks them with generation blocks is believed. Otherwise the text of a turn is the difference of two
renderings: that of the messages before it, with the beginning of an answer, and that of the messages up to it.
"""

from collections.abc import Sequence
from itertools import pairwise

from threadloom.stages.data.conversations.conversation import Conversation, ConversationError, Role
from threadloom.stages.data.conversations.renderer import Refusal, Rendering, TemplateRenderer, Wanted
from threadloom.stages.data.documents import Span


def rendered_turns(renderer: TemplateRenderer, conversation: Conversation) -> tuple[str, tuple[Span, ...]]:
    """Return the text of a conversation and its parts that count; raises ConversationError, ChatTemplateError."""
    text, spans = (marked_turns if renderer.marked else prefix_turns)(renderer, conversation)
    own = "\n".join(text[start:end] for start, end in spans)  # the tools are in the text, even if no call is
    for number, message in enumerate(conversation.messages, start=1):
        written = own if message.counted else text
        lost = next((name for name in message.called if name not in written), None)
        if lost is not None:
            raise ConversationError(
                conversation.origin,
                expected=f"the call of {lost[:80]!r} in the text of the assistant",
                got="none",
                cause=f"{renderer.template.name} does not write calls of tools, or not where the assistant writes",
                hint="set data.chat_template to a template that does",
                part=f"message {number}",
            )
    return text, spans


def marked_turns(renderer: TemplateRenderer, conversation: Conversation) -> tuple[str, tuple[Span, ...]]:
    """Return the same by the template's generation blocks."""
    [whole] = _renderings(renderer, conversation, [Wanted(len(conversation.messages))])
    turns = [number for number, message in enumerate(conversation.messages) if message.role is Role.ASSISTANT]
    left_out = [number for number in turns if not conversation.messages[number].counted]
    spans = whole.generated
    if left_out and len(spans) != len(turns):
        raise ConversationError(
            conversation.origin,
            expected="a generation block for each turn of the assistant, since some of them do not count",
            got=f"{len(spans)} blocks for {len(turns)} turns",
            cause=f"{renderer.template.name} writes them otherwise",
        )
    kept = [span for number, span in zip(turns, spans, strict=True) if number not in left_out] if left_out else spans
    return whole.text, _joined(whole.text, kept, conversation, renderer)


def prefix_turns(renderer: TemplateRenderer, conversation: Conversation) -> tuple[str, tuple[Span, ...]]:
    """Return the same by renderings of the first messages, which must be beginnings of the whole text."""
    messages = conversation.messages
    turns = [n for n, message in enumerate(messages) if message.role is Role.ASSISTANT and message.counted]
    wanted = [Wanted(len(messages)), *(each for n in turns for each in (Wanted(n, prompt=True), Wanted(n + 1)))]
    whole, *prefixes = _renderings(renderer, conversation, wanted)
    spans = []
    for number, before, after in zip(turns, prefixes[::2], prefixes[1::2], strict=True):
        if not after.text.startswith(before.text) or not whole.text.startswith(after.text):
            raise _no_prefix(renderer, conversation, number, before, after, whole)
        end = _generated_end(after.text, len(before.text), len(after.text), messages[number].content)
        spans.append(Span(len(before.text), end))
    return whole.text, _joined(whole.text, spans, conversation, renderer)


def _generated_end(text: str, start: int, end: int, content: str) -> int:
    """Return the end of a turn without the white space that follows its last token, such as that after <|im_end|>.

    The model stops before it. White space without anything before it ends the turn itself, and belongs to it.
    """
    turn, own = text[start:end], content.strip()
    after = turn.partition(own)[2] if own else turn  # calls of tools need no content
    return start + len(turn.rstrip()) if after.strip() or own not in turn else end


def _renderings(renderer: TemplateRenderer, conversation: Conversation, wanted: Sequence[Wanted]) -> list[Rendering]:
    found = renderer.render(conversation.messages, wanted, conversation.tools)
    whole = []
    for which, each in zip(wanted, found, strict=False):
        if isinstance(each, Refusal):
            part = "" if which.messages == len(conversation.messages) else f" up to message {which.messages}"
            raise ConversationError(
                conversation.origin,
                expected=f"a conversation that {renderer.template.name} accepts{part}",
                got=str(each),
            )
        whole.append(each)
    return whole


def _joined(
    text: str, spans: Sequence[Span], conversation: Conversation, renderer: TemplateRenderer
) -> tuple[Span, ...]:
    """Return spans without empty ones; raises ConversationError if none is left."""
    kept = tuple(span for span in spans if span.end > span.start)
    if not kept or any(before.end > after.start for before, after in pairwise(kept)):
        raise ConversationError(
            conversation.origin,
            expected="turns of the assistant in the text of the conversation",
            got=f"none in {len(text):,} characters",
            cause=f"{renderer.template.name} does not write them",
        )
    return kept


def _no_prefix(
    renderer: TemplateRenderer, conversation: Conversation, number: int, before: Rendering, after: Rendering,
    whole: Rendering,
) -> ConversationError:  # fmt: skip
    shorter, longer = (before, after) if not after.text.startswith(before.text) else (after, whole)
    at = next((at for at, (one, other) in enumerate(zip(shorter.text, longer.text, strict=False)) if one != other), 0)
    return ConversationError(
        conversation.origin,
        expected="a chat template that marks the turns of the assistant ({% generation %}), or one whose text of the "
        "first messages begins that of all",
        got=f"{shorter.text[at : at + 20]!r} there and {longer.text[at : at + 20]!r} in the whole, at character {at:,}",
        cause=f"{renderer.template.name} writes earlier turns differently",
        hint="add generation blocks to a copy of it, and pass that as data.chat_template",
        part=f"message {number + 1}",
    )
