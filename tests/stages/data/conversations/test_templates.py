"""Where the chat template of a tokenizer is found, and its variables."""

import json
from pathlib import Path

import pytest

from threadloom.stages.data.conversations.renderer import ChatTemplateError
from threadloom.stages.data.conversations.templates import BUILT_IN, absolute_template, find_template
from threadloom.stages.models import EndOfText

CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def test_a_template_is_that_of_the_setting_then_of_the_folder_then_built_in(tmp_path: Path) -> None:
    def found(setting: str = "") -> str:
        return find_template(setting, tmp_path, CHAT, None).source

    assert found() == BUILT_IN["chatml"]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    assert found() == "old"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "from the list"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found() == "from the list"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert found() == "from the file"
    (tmp_path / "own.jinja").write_text("own")
    assert found(str(tmp_path / "own.jinja")) == "own"
    assert found("plain") == BUILT_IN["plain"]
    assert [absolute_template(name) for name in ("", "plain", "/own.jinja")] == ["", "plain", "/own.jinja"]
    assert Path(absolute_template("own.jinja")).is_absolute()


def test_a_tokenizer_without_the_tokens_of_chatml_has_the_plain_template() -> None:
    found = find_template("", None, ("<|endoftext|>",), EndOfText(7, "<|endoftext|>"))
    assert (found.source, found.variables) == (BUILT_IN["plain"], {"eos_token": "<|endoftext|>"})
    assert find_template("", None, (), None).variables == {}


def test_special_tokens_are_variables(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<old>"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "model_max_length": 1e30})
    )
    found = find_template("", tmp_path, (), EndOfText(2, "<|endoftext|>"))
    assert found.variables == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_template_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ChatTemplateError, match=r"missing.jinja: expected a file with a chat template, or one of chatml"
    ):
        find_template(str(tmp_path / "missing.jinja"), None, (), None)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7}')
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config.json: .*\$\.chat_template"):
        find_template("", tmp_path, (), None)
    (tmp_path / "tokenizer_config.json").write_text("[" * 10_000)
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config.json: "):
        find_template("", tmp_path, (), None)
    (tmp_path / "own.jinja").write_bytes(b"\xff")
    with pytest.raises(ChatTemplateError, match=r"own.jinja: .*UnicodeDecodeError"):
        find_template(str(tmp_path / "own.jinja"), None, (), None)
