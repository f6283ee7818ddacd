"""Conversations are rendered once for all passes over their files, and again if a record is another one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.data.made_tokenizers import qwen
from threadloom.stages.config import Config, DataConfig, Gpt2Config, InvalidRecords, TokenizerKind
from threadloom.stages.data import prepare, read_corpus
from threadloom.stages.data.conversations.conversation import Conversation, Message, Role
from threadloom.stages.data.conversations.rendered import RenderedConversations
from threadloom.stages.data.conversations.renderer import TemplateRenderer
from threadloom.stages.data.documents import Document, Origin, Span
from threadloom.stages.data.sources.registry import reading_of
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.resolve import apply_overrides


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contents of the last messages that were rendered, in order."""
    found, render = list[str](), TemplateRenderer.render

    def counting(self: TemplateRenderer, messages: Any, *rest: Any) -> Any:
        found.append(messages[-1].content)
        return render(self, messages, *rest)

    monkeypatch.setattr(TemplateRenderer, "render", counting)
    return found


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "It's?"}, {"role": "assistant", "content": answer}]}


def write(path: Path, *answers: str) -> Path:
    path.write_text("".join(json.dumps(chat(answer)) + "\n" for answer in answers))
    return path


ANSWERS = [f"The cat {number}." for number in range(30)]


def settings(folder: Path, kind: str) -> Config:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "tokenizer.json").write_text(qwen())
    path = [f"data.tokenizer_path={folder / 'model'}"] if kind == "pretrained" else []
    base = Config(name="x", model=Gpt2Config(context=8, layers=1, heads=1, channels=4), batch_size=4, steps=3)
    overrides = [f"data.text={folder}/*.jsonl", f"data.tokenizer={kind}", *path]
    return apply_overrides(base, [*overrides, *(["model.vocab_size=300"] if kind == "bpe" else [])])


@pytest.mark.parametrize("kind", ["pretrained", "bpe"])
def test_a_preparation_renders_each_conversation_once(
    tmp_path: Path, rendered: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Once for its text and once for what the template itself writes in it."""
    write(tmp_path / "a.jsonl", *ANSWERS[:20])
    write(tmp_path / "b.jsonl", *ANSWERS[20:])
    config = settings(tmp_path, kind)
    prepare(config.data, config.model, read_corpus(config.data, scratch=tmp_path / "new" / "run"), tmp_path / "once")
    assert rendered[::2] == ANSWERS
    rendered.clear()
    monkeypatch.setattr(RenderedConversations, "add", lambda self, key, rendered: None)
    prepare(config.data, config.model, read_corpus(config.data), tmp_path / "always")
    assert len(rendered) >= 2 * (30 + 27 + 30), "for the checksum, the cut at 27 and the tokens"
    for name in ("train.npy", "train.counted.npy", "validation.npy", "tokenizer.json", "manifest.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "always" / name).read_bytes()
    assert not (tmp_path / "new").exists()


def test_invalid_and_moved_files_are_rendered_once_and_changed_ones_again(tmp_path: Path, rendered: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", "one", "two", " ", "three")
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.content }}|"
        "{% if m.content == 'two' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    data = DataConfig(
        tokenizer=TokenizerKind.BYTES, invalid=InvalidRecords.SKIP, chat_template=str(tmp_path / "own.jinja")
    )
    reading = reading_of(data)
    text = read_text([path], reading=reading)
    assert (text.documents, text.skipped[0].invalid) == (2, 2)
    shutil.move(path, tmp_path / "moved.jsonl")
    rendered.clear()
    again = read_text([tmp_path / "moved.jsonl"], reading=reading)
    assert again.sha256 == text.sha256
    assert set(rendered) == {"two"}, "one that is refused is asked for again"
    write(tmp_path / "moved.jsonl", "one", "2", "four", "three")
    rendered.clear()
    documents = [
        part for part in read_text([tmp_path / "moved.jsonl"], reading=reading).parts() if isinstance(part, Document)
    ]
    assert [part.text.split("|")[1] for part in documents] == ["one", "2", "four", "three"]
    assert not {"one", "three"} & set(rendered)
    with pytest.raises(TextError, match="another program writes to the file"):
        list(again.parts())


def conversation(record: int, content: str, path: Path = Path("a.jsonl")) -> Conversation:
    return Conversation((Message(Role.ASSISTANT, content),), Origin(path, record))


def document(of: Conversation) -> Document:
    content = of.messages[0].content
    return Document(content * 3, of.origin, (Span(1, 2),), None if len(content) % 2 else (Span(0, 1), Span(3, 9)))


def test_passes_find_what_was_added_in_any_interleaving(tmp_path: Path) -> None:
    """Two files of records of very different lengths are added in turns; the last ones do not fit."""
    paths = [tmp_path / "a", tmp_path / "b"]
    lengths = np.random.default_rng(3).integers(1, 3000, 400).tolist()
    lengths += [300_000, 5]
    conversations = [
        conversation(number, "x" * length, paths[number // 7 % 2]) for number, length in enumerate(lengths, start=1)
    ]
    kept = RenderedConversations(tmp_path)
    adding = [kept.reading(path) for path in paths]
    for number, each in enumerate(conversations, start=1):
        adding[number // 7 % 2].add(each, document(each))
    passes = [kept.reading(path) for path in paths]
    for number, each in enumerate(conversations, start=1):
        assert passes[number // 7 % 2].find(each) == document(each)
    assert kept.reading(paths[0]).find(conversation(len(lengths) + 1, "x", paths[0])) is None
    own = [each for each in conversations if each.origin.path == paths[1]]
    late = kept.reading(paths[1])
    assert late.find(own[-1]) == document(own[-1])
    assert kept.reading(paths[1]).find(conversation(own[3].origin.record or 0, "other", paths[1])) is None
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = conversation(1, "a" * 100), conversation(2, "b" * 100)
    small = RenderedConversations(tmp_path, most=600)
    for each in (first, second):
        small.reading(Path("a.jsonl")).add(each, document(each))
    assert small.reading(Path("a.jsonl")).find(first) == document(first)
    assert small.reading(Path("a.jsonl")).find(second) is None
    refusing = RenderedConversations(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("threadloom.stages.data.conversations.rendered.os.pwrite", full)
    refusing.reading(Path("a.jsonl")).add(first, document(first))
    assert refusing.reading(Path("a.jsonl")).find(first) is None
