"""Chat templates: those of a tokenizer's folder, of a file, and built-in ones for tokenizers without one."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from threadloom.stages.data.conversations.renderer import ChatTemplate, ChatTemplateError
from threadloom.stages.data.text_paths import absolute_text, text_path
from threadloom.stages.data.tokenizer_files import TEMPLATE_FILE
from threadloom.stages.data.vocabulary_files import TOKENIZER_CONFIG_FILE
from threadloom.stages.models import EndOfText
from threadloom.stages.storage import plain_json

_NO_TOOLS = (
    "{%- if tools or messages | selectattr('tool_calls', 'defined') | list -%}"
    "{{- raise_exception('it writes no tools and no calls of them: set data.chat_template to one that does') -}}"
    "{%- endif -%}"
)
"""The beginning of the built-in templates."""

CHATML = (
    _NO_TOOLS + "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message.content + '<|im_end|>' -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The format of ChatML, which Qwen and SmolLM use."""

PLAIN = (
    _NO_TOOLS + "{%- for message in messages -%}"
    "{{- message.role | capitalize + ':' -}}"
    "{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- ' ' + message.content + (eos_token | default('\\n\\n')) -}}{%- endgeneration -%}"
    "{{- '\\n\\n' if eos_token is defined -}}"
    "{%- else -%}{{- ' ' + message.content + '\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
"""Roles as words and an empty line after each turn, for a tokenizer of any kind. The assistant ends its turn with the
end-of-text token, if there is one, and otherwise with the empty line."""

BUILT_IN: Mapping[str, str] = MappingProxyType({"chatml": CHATML, "plain": PLAIN})
_NEEDED = ("<|im_start|>", "<|im_end|>")
"""Tokens of a vocabulary for which `chatml` is meant."""

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of special tokens, which are variables of templates."""


class _Token(msgspec.Struct):
    content: str


class _Named(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    """The part of tokenizer_config.json, or of special_tokens_map.json, that templates depend on."""

    chat_template: str | list[_Named] | None = None
    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    mask_token: str | _Token | None = None

    def tokens(self) -> dict[str, str]:
        found = {key: getattr(self, key) for key in _TOKENS}
        texts = {key: token.content if isinstance(token, _Token) else token for key, token in found.items()}
        return {key: text for key, text in texts.items() if text is not None}

    def template(self) -> str | None:
        """Return the default template."""
        if not isinstance(self.chat_template, list):
            return self.chat_template
        named = {each.name: each.template for each in self.chat_template}
        return named.get("default")


def find_template(
    setting: str, folder: Path | None, special: tuple[str, ...], end_of_text: EndOfText | None
) -> ChatTemplate:
    """Return the template of `data.chat_template`, or that of a tokenizer.

    `folder` has the tokenizer's files, None for one without a folder; `special` are the texts of its special tokens.
    A tokenizer without a template gets `chatml` if it has its tokens, and `plain` otherwise. Raises ChatTemplateError
    for a file that cannot be read.
    """
    config = _TokenizerConfig() if folder is None else _config(folder / TOKENIZER_CONFIG_FILE)
    tokens = config.tokens()
    if folder is not None:
        tokens = _config(folder / "special_tokens_map.json").tokens() | tokens
    if end_of_text is not None:
        tokens.setdefault("eos_token", end_of_text.token)
    if setting in BUILT_IN:
        return ChatTemplate(f"data.chat_template={setting}", BUILT_IN[setting], tokens)
    if setting:
        return ChatTemplate(str(text_path(setting)), _text(text_path(setting)), tokens)
    if folder is not None:
        if (folder / TEMPLATE_FILE).exists():
            return ChatTemplate(str(folder / TEMPLATE_FILE), _text(folder / TEMPLATE_FILE), tokens)
        for source, found in ((TOKENIZER_CONFIG_FILE, config), ("chat_template.json", None)):
            template = (found or _config(folder / source)).template()
            if template is not None:
                return ChatTemplate(str(folder / source), template, tokens)
    name = "chatml" if set(_NEEDED) <= set(special) else "plain"
    return ChatTemplate(f"the built-in chat template {name}", BUILT_IN[name], tokens)


def absolute_template(setting: str) -> str:
    """Return a value of `data.chat_template` that is valid in any directory."""
    return setting if not setting or setting in BUILT_IN else absolute_text(setting)


def _config(path: Path) -> _TokenizerConfig:
    """Return the content of a file; that of a missing one is empty."""
    try:
        return msgspec.json.decode(plain_json(path.read_bytes()), type=_TokenizerConfig)
    except FileNotFoundError:
        return _TokenizerConfig()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, "JSON with a chat template and special tokens as texts", error) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"a file with a chat template, or one of {', '.join(BUILT_IN)}", error) from error


def _unreadable(path: Path, expected: str, error: Exception) -> ChatTemplateError:
    got = (error.strerror or type(error).__name__) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return ChatTemplateError(str(path), expected=expected, got=got, hint="restore the file, or set data.chat_template")
