"""Chat templates are other people's programs: whatever they do ends soon, with a sentence, and harms nothing."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.stages.data.conversations.chat_templates import QWEN
from threadloom.stages.data.conversations.conversation import Message, Role
from threadloom.stages.data.conversations.renderer import (
    ChatTemplate,
    ChatTemplateError,
    Limits,
    Refusal,
    Rendering,
    TemplateRenderer,
    Wanted,
)

MESSAGES = (Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello"))
LIMITS = Limits(seconds=0.05, bytes=100_000_000)


def renderer(source: str) -> TemplateRenderer:
    return TemplateRenderer(ChatTemplate("evil.jinja", source, {}), LIMITS)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        pytest.param(
            "{% for a in range(99999) %}{{ range(99999) | map('string') | join }}{% endfor %}",
            "processor time",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(50) }}",
            "processor time",
            marks=pytest.mark.soak,
        ),
        ("{{ 9 ** (9 ** 9) }}", "processor time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        pytest.param("{{ " + "-" * 50_000 + "1 }}", "RecursionError", marks=pytest.mark.soak),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        pytest.param("{{ ('{:>' ~ 10 ** 10 ~ '}').format(messages | length) }}", "MemoryError", marks=pytest.mark.soak),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "leaves the sandbox"),
        pytest.param(
            "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
            "leaves the sandbox",
            marks=pytest.mark.soak,
        ),
        pytest.param("{{ messages.append(1) }}", "leaves the sandbox", marks=pytest.mark.soak),
        pytest.param("{{ namespace(__init__=1) }}", "leaves the sandbox", marks=pytest.mark.soak),
        ("{% include '/etc/passwd' %}", "imports no other one"),
        pytest.param("{% import 'os' as os %}{{ os.getpid() }}", "imports no other one", marks=pytest.mark.soak),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_loops_recurses_allocates_escapes_or_imports_is_stopped(source: str, said: str) -> None:
    with pytest.raises(ChatTemplateError) as caught, renderer(source) as other:
        other.render(MESSAGES, [Wanted(2)])
    assert str(caught.value).startswith("evil.jinja: expected ")
    assert said in str(caught.value)
    assert "data.chat_template" in str(caught.value)


def test_what_a_template_may_not_see_is_undefined_to_it() -> None:
    source = (
        "{{ messages.__class__ }}{{ raise_exception.__globals__ }}{{ ''|attr('__class__') }}{{ joiner.x is defined }}"
    )
    with renderer(source) as other:
        [found] = other.render(MESSAGES, [Wanted(2)])
    assert found == Rendering("False", ())


def test_a_renderer_goes_on_after_a_conversation_that_the_template_refuses() -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + QWEN
    with renderer(source) as other:
        refused, missing = other.render([Message(Role.TOOL, "x")], [Wanted(1), Wanted(0)])
        assert refused == Refusal("refused", "begin with the user")
        assert isinstance(missing, Refusal) and missing.kind == "UndefinedError"
        [found] = other.render(MESSAGES, [Wanted(2)])
        assert isinstance(found, Rendering)
        assert found.text.endswith("Hello<|im_end|>\n")


def test_a_block_that_is_cut_in_two_is_refused() -> None:
    source = "{% set x %}{% generation %}Hello{% endgeneration %}{% endset %}{{ x[:30] }}"
    with renderer(source) as other:
        [found] = other.render(MESSAGES, [Wanted(2)])
    assert isinstance(found, Refusal)
    assert "cuts the text of a generation block" in found.message


@pytest.mark.parametrize(("found", "said"), [(None, "got no such package"), ("3.1.5", "3.1.6 or newer, .* got 3.1.5")])
def test_without_a_safe_jinja2_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, found: str | None, said: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("threadloom.stages.data.conversations.renderer.version", version)
    with pytest.raises(ChatTemplateError, match=rf"{said}.*pip install 'threadloom\[chat\]'"):
        renderer(QWEN)


def test_the_process_loads_no_numerical_library() -> None:
    source = Path(__file__).parents[4] / "stages" / "child_processes" / "render_chats.py"
    imported = [line.split()[1] for line in source.read_text().splitlines() if line.startswith(("from ", "import "))]
    assert not [name for name in imported if name.startswith("threadloom")]
