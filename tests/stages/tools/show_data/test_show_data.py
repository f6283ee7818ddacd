"""`threadloom show-data`: sequences as a training reads them, in a terminal, in a pipe, as a page and as a picture."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from rich.console import Console

from tests.stages.data.made_tokenizers import qwen
from tests.stages.support import command
from threadloom.stages.config import BatchSizes
from threadloom.stages.data import TokenBatches, TokenFile, load_tokenizer
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.documents import Document, Origin, Span
from threadloom.stages.resolve import apply_overrides, load_config, resolve, to_json
from threadloom.stages.storage import RunDirectory
from threadloom.stages.tools.show_data.lines import cells, lines_of
from threadloom.stages.tools.show_data.page import page_of
from threadloom.stages.tools.show_data.segments import Kind, Rows, Segment, ShownSequence, segments_of
from threadloom.stages.tools.show_data.sequences import ShownData
from threadloom.stages.tools.show_data.terminal import print_sequences

IGNORED = -1
CONTEXT = 60


def rows(text: str, counted: str, borders: tuple[int, ...] = ()) -> Rows:
    """Return the rows of a text of bytes; `counted` has x for the bytes that count."""
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    targets = np.where([mark == "x" for mark in counted[1:]], ids[1:], IGNORED).astype(np.int32)
    return Rows(ids[:-1], targets, frozenset(borders))


def test_segments_have_one_kind_each() -> None:
    found = segments_of(rows("abcdEfgh", "..xx..xx", (3, 5)), BytesTokenizer(), {ord("E")})
    assert found == (
        Segment(Kind.TEXT, "ab", False, 2),
        Segment(Kind.TEXT, "c", True, 1),
        Segment(Kind.BORDER, "", False, 0),
        Segment(Kind.TEXT, "d", True, 1),
        Segment(Kind.SPECIAL, "E", False, 1),
        Segment(Kind.BORDER, "", False, 0),
        Segment(Kind.TEXT, "f", False, 1),
        Segment(Kind.TEXT, "gh", True, 2),
    )


def test_a_last_target_that_does_not_count_is_unknown_and_not_shown() -> None:
    assert segments_of(rows("abc", "xx."), BytesTokenizer(), ())[-1] == Segment(Kind.TEXT, "b", True, 1)
    assert [each.text for each in segments_of(rows("ab", ".."), BytesTokenizer(), ())] == ["a"]


PIECES = st.lists(
    st.builds(Segment, st.sampled_from(Kind), st.text(max_size=40), st.booleans(), st.integers(1, 9)), max_size=8
)


@settings(max_examples=40)
@given(PIECES, st.integers(2, 30), st.booleans())
def test_no_line_is_too_wide_and_nothing_is_lost_or_dangerous(segments: list[Segment], width: int, marks: bool) -> None:
    lines = list(lines_of(segments, width, marks=marks))
    shown = ""
    for line in lines:
        own = [run for run in line if run.kind in (Kind.TEXT, Kind.SPECIAL)]
        assert sum(cells(character) for run in own for character in run.text) <= width
        text = "".join(run.text for run in own)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", text)
        assert "↵" not in text[:-1]
        shown += text
    written = "".join(each.text for each in segments if each.kind in (Kind.TEXT, Kind.SPECIAL))
    kept = [character for character in written.replace("\r\n", "\n") if character.isalnum()]
    position = 0
    for character in kept:
        position = shown.index(character, position) + 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with conversations of one turn, of which the answers count."""
    data = tmp_path / "run" / "data"
    data.mkdir(parents=True)
    (data / "tokenizer.json").write_text(qwen())
    tokenizer = load_tokenizer(data)
    assert tokenizer.end_of_text is not None
    ids, counted, starts = list[int](), list[int](), list[int]()
    for number in range(9):
        user, answer = f"{number}?<|im_end|>", f"It's <b>{number}</b>."
        text = f"<|im_start|>user\n{user}<|im_end|>\n{answer}"
        at = text.index(answer)
        markup = (Span(0, 17), Span(17 + len(user), at))
        document = Document(text, Origin(data), (Span(at, len(text)),), markup)
        found = tokenizer.encode_document(document)
        assert found.counted is not None
        starts.append(len(ids))
        ids += [*found.ids.tolist(), tokenizer.end_of_text.id]
        counted += [*found.counted.astype(int).tolist(), 1]
    for split in ("train", "validation"):
        np.save(data / f"{split}.npy", np.array(ids, np.uint16))
        np.save(data / f"{split}.documents.npy", np.array(starts, np.int64))
        np.save(data / f"{split}.counted.npy", np.array(counted, np.uint8))
    config = apply_overrides(load_config("nanogpt-cpu"), [f"model.context={CONTEXT}", "batch_size=4", "micro_batch=2"])
    (tmp_path / "run" / "config.json").write_text(to_json(resolve(config, 2, tokenizer.vocab_size)))
    return tmp_path / "run"


def test_a_run_shows_the_sequences_of_an_update_with_marks_in_a_pipe(run: Path) -> None:
    outcome = command("show-data", run, "-n", "2", "--update", "3")
    assert outcome.status == 0, outcome.err
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    config = load_config(run)
    tokens = TokenFile.open(run / "data" / "train.npy", 1000, CONTEXT)
    assert tokens.counted is not None and tokens.documents is not None
    source = TokenBatches(tokens, BatchSizes(4, 1), config.seed)
    for number in range(2):
        start = source.start(3, number)
        counts = int(tokens.counted[start + 1 : start + CONTEXT + 1].sum())
        title = f"update 3, sequence {number}: tokens {start} to {start + CONTEXT}, {counts} of {CONTEXT} targets count"
        _, _, part = outcome.out.partition(title + "\n")
        part = part.partition("\nupdate")[0]
        inside = ((tokens.documents > start) & (tokens.documents <= start + CONTEXT)).sum()
        assert part.count(" another document ") in (inside, inside - 1)  # the last token may not be shown
        assert part.count("⟦") == part.count("⟧") > 0
    assert re.search(r"‹<\|im_start\|>›user↵\n\d\?<\|im_end\|>‹<\|im_end\|>›↵\n⟦It's <b>\d</b>", outcome.out)


@pytest.mark.parametrize("bordered", [False, True])
def test_packed_documents_are_shown_whole_with_their_padding(run: Path, bordered: bool) -> None:
    changes = ["data.packing=documents", f"data.borders={'reset' if bordered else 'ignored'}", "model.context=150"]
    config = apply_overrides(load_config(run), changes)
    (run / "config.json").write_text(to_json(config))
    outcome = command("show-data", run, "-n", "4")
    assert outcome.status == 0, outcome.err
    sequences = outcome.out.split("\nupdate 0, sequence ")[1:]
    assert len(sequences) == 4
    whole = "‹<|im_start|>›user↵\nN?<|im_end|>‹<|im_end|>›↵\n⟦It's <b>N</b>.‹<|endoftext|>›⟧\n"
    for shown in sequences:
        title, _, rest = shown.partition("\n")
        assert "of 150 targets count" in title
        documents = re.split("─+ another document ─+\n", re.sub("─+ padding, .* tokens ─+\n?", "", rest))
        for document in documents:
            assert re.sub(r"\d", "N", document.strip() + "\n") == whole
        assert "padding, " in rest


def test_a_terminal_has_colours_and_no_marks(run: Path) -> None:
    out = io.StringIO()
    data = ShownData.of_run(RunDirectory(run))
    print_sequences(data.training(0, 1), Console(file=out, force_terminal=True, color_system="standard", width=80))
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "⟦" not in plain and "\x1b" not in plain
    assert all(len(line) <= 80 for line in plain.splitlines())
    assert "\x1b[2muser↵" in out.getvalue()
    assert re.search(r"\x1b\[1;(2;)?35m<\|im_end\|>", out.getvalue())
    assert re.search(r"\x1b\[33m─+ another document ─+", out.getvalue())


class Parsed(HTMLParser):
    """The elements with text of a page; raises for an unknown one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("html", "meta", "title", "style", "h1", "h2", "p", "span"), tag
        if tag not in ("meta", "html"):
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.found.append((self.open[-1][1] if self.open else "", data))


def test_a_page_has_the_classes_of_its_segments_and_no_element_of_the_data(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert command("show-data", run, "--out", out).status == 0
    parsed = Parsed(out.read_text(encoding="utf-8"))
    assert parsed.open == []
    found = parsed.found
    assert ("masked special", "<|im_start|>") in found
    assert any(classes == "counts" and text.startswith("It's <b>") for classes, text in found)
    assert any(classes == "masked" and "?<|im_end|>" in text for classes, text in found)
    attack = page_of("<script>", [ShownSequence("<script>", (Segment(Kind.TEXT, "</p><script>\x1b", True, 1),))])
    assert ("counts", "</p><script><U+001B>") in Parsed(attack).found


def test_a_picture_shades_what_counts(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    assert command("show-data", run, "-n", "1", "--out", out).status == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert (0xDB, 0xEA, 0xFE) in colours


def test_a_configuration_shows_a_text_that_is_prepared_for_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat.\n" * 60)
    changes = ("--set", "model.context=20", "--set", "batch_size=2", "--set", "data.tokenizer=bytes")
    outcome = command("show-data", "nanogpt-cpu", "--text", text, *changes, "-n", "1")
    assert outcome.status == 0, outcome.err
    assert "20 of 20 targets count" in outcome.out
    validation = command("show-data", "nanogpt-cpu", "--text", text, *changes, "--validation", "-n", "1")
    assert "validation, sequence 0: tokens 0 to 20" in validation.out
    piped = command("show-data", "nanogpt-cpu", "--text", "-", *changes, "-n", "1", piped=text.read_bytes())
    assert piped == outcome


def test_a_wrong_suffix_is_refused_before_anything_is_read(run: Path) -> None:
    outcome = command("show-data", run, "--out", "page.pdf")
    assert (outcome.status, outcome.out) == (1, "")
    assert "--out: expected a file of the suffix .html or .png, got page.pdf" in outcome.err
