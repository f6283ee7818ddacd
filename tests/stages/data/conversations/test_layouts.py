"""Records with conversations: the layouts, their recognition, and a sentence for each wrong record."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from threadloom.stages.config import ConversationLayout
from threadloom.stages.data.conversations.conversation import ConversationError, Message, Role
from threadloom.stages.data.conversations.layouts import layout_of, read_conversation
from threadloom.stages.data.documents import Origin

ORIGIN = Origin(Path("chats.jsonl"), 1234)
USER, ASSISTANT = Message(Role.USER, "2 + 2?"), Message(Role.ASSISTANT, "4")
SYSTEM = Message(Role.SYSTEM, "Be brief.")

RECORDS: dict[str, tuple[ConversationLayout, dict[str, Any], tuple[Message, ...]]] = {
    "openai": (
        ConversationLayout.OPENAI,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
                {"role": "assistant", "content": "4", "name": "gpt"},
            ],
            "id": 7,
        },
        (SYSTEM, USER, ASSISTANT),
    ),
    "weights": (
        ConversationLayout.OPENAI,
        {
            "messages": [
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "5", "weight": 0},
                {"role": "user", "content": None},
                {"role": "assistant", "content": "4", "weight": None},
            ]
        },
        (USER, Message(Role.ASSISTANT, "5", counted=False), Message(Role.USER, ""), ASSISTANT),
    ),
    "sharegpt": (
        ConversationLayout.SHAREGPT,
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
        },
        (SYSTEM, USER, ASSISTANT),
    ),
    "alpaca": (
        ConversationLayout.ALPACA,
        {"instruction": "2 + 2?", "input": "", "output": "4"},
        (USER, ASSISTANT),
    ),
    "alpaca with an input": (
        ConversationLayout.ALPACA,
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        (Message(Role.USER, "Add.\n\n2, 2"), ASSISTANT),
    ),
    "completion": (ConversationLayout.COMPLETION, {"prompt": "2 + 2?", "completion": "4"}, (USER, ASSISTANT)),
    "completion of messages": (
        ConversationLayout.COMPLETION,
        {
            "prompt": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
            "completion": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
        },
        (USER, Message(Role.ASSISTANT, "4", counted=False), USER, ASSISTANT),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_layout_is_recognised_and_becomes_the_same_structure(name: str) -> None:
    layout, record, expected = RECORDS[name]
    assert layout_of(record) is layout
    for given in (None, layout):
        found = read_conversation(record, ORIGIN, given)
        counted = tuple(
            Message(each.role, each.content, each.counted or each.role is not Role.ASSISTANT) for each in found.messages
        )
        assert counted == expected
        assert found.origin == ORIGIN
        assert found.templated is (name != "completion")


def chat(*messages: object) -> dict[str, Any]:
    return {"messages": list(messages)}


ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def nested(levels: int) -> object:
    found: object = "Hi"
    for _ in range(levels):
        found = [found]
    return found


DEEP = nested(10_000)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (["Hi"], "got a record of the type list"),
        (None, "got a record of the type null"),
        ({"text": "Hi"}, "got a record with the keys 'text'"),
        ({"messages": "Hi"}, "Expected `array`, got `str` - at `$.messages`"),
        (chat(), "an empty list"),
        (chat("Hi"), "Expected `object`, got `str` - at `$.messages[0]`"),
        (chat({"content": "Hi"}), "missing required field `role` - at `$.messages[0]`"),
        (chat({"role": "user", "content": 7}), "`int` - at `$.messages[0].content`"),
        (chat(ASKED, {"role": "narrator", "content": "Hm"}), "as the role of message 2, got 'narrator'"),
        (chat(ASKED), "with a turn of the assistant whose loss counts, got 1 messages, 0 of the assistant"),
        (chat(ASKED, ANSWERED | {"weight": 0}), "1 of the assistant, all of weight 0"),
        (chat(ASKED, ANSWERED | {"content": ""}), "message 2: expected a turn of the assistant with text"),
        (chat(ASKED, ANSWERED | {"content": None}), "got an empty one"),
        (chat(ASKED, ANSWERED | {"content": " \n"}), "2 characters of white space"),
        (chat(ASKED, ANSWERED | {"tool_calls": {"id": 1}}), "Expected `array | null`, got `object` - at"),
        (chat(ASKED, ANSWERED | {"tool_calls": ["sum"]}), "`str` - at `$.messages[1].tool_calls[0]`"),
        (chat(ASKED | {"tool_calls": [{"id": 1}]}, ANSWERED), "by the assistant alone, in message 1, got some by user"),
        (chat(ASKED, ANSWERED | {"tool_calls": [{"id": DEEP}]}), "at most 200 levels in tool_calls of message 2"),
        (chat(ASKED, ANSWERED) | {"tools": [{"id": DEEP}]}, "at most 200 levels in `tools`"),
        (chat(ASKED, ANSWERED) | {"tools": "[{"}, "a list of tools as `tools`, or its JSON as a text"),
        (chat(ASKED, ANSWERED | {"tool_calls": [{"id": date(2024, 1, 1)}]}), "in tool_calls of message 2, got one of"),
        (chat(ASKED, ANSWERED) | {"tools": [{"a": [{"b": b"c"}]}]}, "in `tools`, got one of the type bytes"),
        (chat(ASKED, ANSWERED) | {"tools": "\ud83d"}, "a list of tools as `tools`, or its JSON as a text"),
        (chat(ASKED, ANSWERED) | {"tools": "[1]"}, "Expected `object`, got `int` - at `$[0]`"),
        (chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "a part of the type 'image_url'"),
        (chat(ASKED, ANSWERED | {"content": "\ud83d"}), "the lone surrogate U+D83D"),
        ({"conversations": [{"from": "human"}]}, "missing required field `value`"),
        ({"conversations": [{"from": "bard", "value": "Hi"}]}, "got 'bard'"),
        ({"instruction": "Add.", "output": 4}, "`int` - at `$.output`"),
        ({"instruction": "Add.", "output": ""}, "a turn of the assistant with text"),
        ({"prompt": "Add.", "completion": [ANSWERED]}, "a text and a list of messages"),
        ({"prompt": "Add.", "completion": None}, "at `$.completion`"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_a_sentence_with_file_and_line(record: object, said: str) -> None:
    with pytest.raises(ConversationError) as caught:
        read_conversation(record, ORIGIN)
    message = str(caught.value)
    assert message.startswith("chats.jsonl, line 1,234")
    assert said in message


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "ü"}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_calls_of_tools_are_kept_as_they_are() -> None:
    record = chat(
        ASKED | {"name": "Eve"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"},
        {"role": "assistant", "tool_calls": [CALL, CALL]},
        {"role": "assistant", "content": "See.", "tool_calls": [CALL]},
        ANSWERED | {"tool_calls": None},
    )
    found = read_conversation(record | {"tools": [TOOL]}, ORIGIN)
    assert [message.fields for message in found.messages] == [
        ASKED,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"},
        {"role": "assistant", "tool_calls": [CALL, CALL]},
        {"role": "assistant", "content": "See.", "tool_calls": [CALL]},
        ANSWERED,
    ]
    assert [message.counted for message in found.messages] == [True, False, True, True, True, True]
    assert found.tools == (TOOL,)
    for tools, expected in ((json.dumps([TOOL]), (TOOL,)), ("", None), (None, None), ([], ())):
        assert read_conversation(chat(ASKED, ANSWERED) | {"tools": tools}, ORIGIN).tools == expected
    completion = {"prompt": record["messages"][:2], "completion": record["messages"][2:], "tools": [TOOL]}
    again = read_conversation(completion, ORIGIN)
    assert [message.fields for message in again.messages] == [message.fields for message in found.messages]
    assert (again.tools, again.messages[1].counted) == ((TOOL,), False)


def test_the_layout_that_is_set_is_expected() -> None:
    record = {"messages": [ASKED, ANSWERED]}
    with pytest.raises(ConversationError, match=r"data\.conversations=sharegpt names another layout"):
        read_conversation(record, ORIGIN, ConversationLayout.SHAREGPT)


def test_deep_values_are_no_way_to_crash() -> None:
    deep = DEEP
    with pytest.raises(ConversationError, match=r"at `\$\.messages\[0\]\.content"):
        read_conversation(chat({"role": "user", "content": deep}), ORIGIN)
    read_conversation(chat(ASKED | {"extra": deep}, ANSWERED), ORIGIN)
