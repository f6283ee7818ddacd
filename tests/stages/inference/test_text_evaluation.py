"""The loss of a text in sliding windows: every token once, compared with a direct computation in float64."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from tests import reference
from tests.error_bounds import mean_loss
from tests.stages.data.made_tokenizers import MADE
from tests.stages.support import command
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.config import ConfigError, InputError, InvalidRecords
from threadloom.stages.data import DataError
from threadloom.stages.data.bytes_tokenizer import BytesTokenizer
from threadloom.stages.data.character_tokenizer import CharacterTokenizer
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.inference import Model, TextOptions, evaluate_text
from threadloom.stages.inference.evaluated_text import _scored_size, size_of_first_token
from threadloom.stages.inference.sliding_windows import sliding_windows
from threadloom.stages.machine import ThreadLimit
from threadloom.stages.models import Geometry, parameter_shapes

pytestmark = pytest.mark.timeout(600)  # includes compiling with an empty cache

GEOMETRY = Geometry(vocabulary=257, context=11, layers=2, heads=3, channels=9)
TEXT = "Ein Text, über dessen Zeichen – auch solche aus drei Bytes – gemittelt wird. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random model with a bytes tokenizer."""
    path, g = tmp_path_factory.mktemp("model"), GEOMETRY
    weights = Arena(parameter_shapes(g))
    for name, tensor in random_tensors().items():
        weights[name][...] = tensor
    write_model(path, weights, g)
    BytesTokenizer().save(path / "tokenizer.json")
    return path


def random_tensors() -> reference.Tensors:
    g = GEOMETRY
    return reference.random_tensors(np.random.default_rng(4), g.vocabulary, g.context, g.layers, g.channels)


@given(tokens=st.integers(0, 60), context=st.integers(1, 20), data=st.data())
@example(tokens=21, context=20, data=None)
def test_every_token_is_scored_once_after_as_many_others_as_promised(
    tokens: int, context: int, data: st.DataObject | None
) -> None:
    stride = data.draw(st.integers(1, context)) if data else context
    given_tokens = data.draw(st.integers(1, context)) if data else 1
    scored = list[int]()
    windows = list(sliding_windows(tokens, context, stride, given_tokens))
    for number, window in enumerate(windows):
        end = window.start + window.inputs  # position of the last token that is scored
        assert window.start >= 0
        assert end < tokens
        assert 1 <= window.scored <= window.inputs <= context
        before = window.inputs - window.scored + 1  # tokens before the first that is scored
        assert before >= (given_tokens if number == 0 else context - stride + 1)
        assert number == 0 or (window.inputs == context and window.scored <= stride)
        scored += range(end - window.scored + 1, end + 1)
    assert scored == list(range(given_tokens, tokens))
    assert len(windows) <= 1 + max(0, math.ceil((tokens - 1 - context) / stride))


def test_a_stride_that_leaves_tokens_out_is_refused(folder: Path) -> None:
    for stride in (0, 12):
        with pytest.raises(ConfigError, match="from 1 to 11, the context of the model, got"):
            evaluate_text(folder, ("unread",), None, TextOptions(stride))
        with pytest.raises(ValueError, match="from 1 to the context, 11"):
            list(sliding_windows(40, 11, stride))


def one_by_one(ids: np.ndarray, stride: int) -> tuple[float, float]:
    """Return the mean loss of a text, each token computed by itself, and a bound on the error of a correct one."""
    tensors, context = random_tensors(), GEOMETRY.context
    rows = list[tuple[np.ndarray, int]]()
    for position in range(1, len(ids)):
        # The window that scores the token: the first one, or the first of those that reach it, but not past the end.
        steps = max(0, math.ceil((position - context) / stride))
        end = min(context + steps * stride, len(ids) - 1)
        start = max(0, end - context)
        rows.append((ids[start:position], int(ids[position])))
    losses = [
        float(reference.losses(tensors, before[None], np.append(before[1:], target)[None], GEOMETRY.heads)[0, -1])
        for before, target in rows
    ]
    length = min(context, len(ids) - 1)  # the bound of whole windows is larger than that of the mean over all
    _, bound = mean_loss(tensors, ids[None, :length], ids[None, 1 : length + 1], GEOMETRY.heads)
    return math.fsum(losses) / len(losses), bound


@settings(max_examples=12, deadline=None)
@given(length=st.integers(2, 75), stride=st.integers(1, 11))
@example(length=12, stride=11)
@example(length=13, stride=11)
@example(length=75, stride=3)
def test_the_loss_is_that_of_the_tokens_one_by_one(folder: Path, length: int, stride: int) -> None:
    content = TEXT.encode()[:length].decode("utf-8", "ignore")
    ids = np.frombuffer(content.encode(), np.uint8).astype(np.int64)
    (folder / "text.txt").write_text(content, encoding="utf-8")
    found = evaluate_text(folder, (str(folder / "text.txt"),), None, TextOptions(stride))
    expected, bound = one_by_one(ids, stride)
    assert abs(found.loss - expected) <= bound
    assert found.tokens == found.size.bytes == len(ids) - 1
    assert found.size.characters == len(content) - 1
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=1e-12)


def test_documents_are_scored_by_themselves_at_any_number_of_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a.txt", "b.txt", "c.txt", "d.txt")
    for name, content in zip(names, (TEXT[:60], "x", TEXT[50:52], TEXT), strict=True):
        (tmp_path / name).write_text(content, encoding="utf-8")
    found = {}
    for threads in (1, 3):
        limit = ThreadLimit(threads, "")
        monkeypatch.setattr("threadloom.stages.inference.token_scores.thread_limit", lambda limit=limit: limit)
        found[threads] = evaluate_text(folder, (str(tmp_path),), None, TextOptions(4, by_file=True))
    assert found[1].documents == found[3].documents
    assert [Path(document.name).name for document in found[1].documents] == ["a.txt", "c.txt", "d.txt"]
    for document in found[1].documents:
        alone = evaluate_text(folder, (document.name,), None, TextOptions(4))
        assert document.nats == pytest.approx(alone.nats, rel=1e-6)
        assert (document.tokens, document.size) == (alone.tokens, alone.size)
    assert found[1].tokens == sum(document.tokens for document in found[1].documents)
    together = evaluate_text(folder, (str(tmp_path),))
    assert len(together.documents) == 1
    assert together.tokens == len((TEXT[:60] + "\nx\n" + TEXT[50:52] + "\n" + TEXT).encode()) - 1


def test_each_record_is_a_document_and_invalid_ones_are_refused_or_skipped(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    contents = ["eins", "ä und ö", "x", "vier"]
    lines = [json.dumps({"body": content}) for content in contents]
    path.write_text("\n".join([*lines, '{"body": 5}']) + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl, line 5"):
        evaluate_text(folder, (str(path),), None, TextOptions(field="body"))
    found = evaluate_text(folder, (str(path),), None, TextOptions(field="body", invalid=InvalidRecords.SKIP))
    assert [document.name for document in found.documents] == [f"{path}, line {number}" for number in (1, 2, 4)]
    for document, content in zip(found.documents, (contents[0], contents[1], contents[3]), strict=True):
        (tmp_path / "alone.txt").write_text(content, encoding="utf-8")
        alone = evaluate_text(folder, (str(tmp_path / "alone.txt"),))
        assert document.nats == pytest.approx(alone.nats, rel=1e-6)
        assert (document.tokens, document.size) == (alone.tokens, alone.size)
    said = command("eval", folder, "--text", path, "--field=body", "--invalid=skip").out
    assert [line.rpartition(" ")[2] for line in said.splitlines()[1:-1]] == ["1", "2", "4"]


def test_only_the_completion_of_a_prompt_is_scored(folder: Path, tmp_path: Path) -> None:
    """The oracle is the loss of the whole text, without that of the prompt."""
    records = [{"prompt": "Is ä", "completion": " ö?"}, {"text": "whole"}, {"prompt": "abc", "completion": "d"}]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = evaluate_text(folder, (str(path),))

    def nats(text: str) -> float:
        (tmp_path / "alone.txt").write_text(text, encoding="utf-8")
        return evaluate_text(folder, (str(tmp_path / "alone.txt"),)).nats

    expected = [nats("Is ä ö?") - nats("Is ä"), nats("whole"), nats("abcd") - nats("abc")]
    assert [document.name for document in found.documents] == [f"{path}, line {number}" for number in (1, 2, 3)]
    assert [document.nats for document in found.documents] == pytest.approx(expected, rel=1e-5)
    assert [document.tokens for document in found.documents] == [4, 4, 1]
    assert [tuple(document.size) for document in found.documents] == [(3, 4), (4, 4), (1, 1)]
    assert found.nats == pytest.approx(sum(expected), rel=1e-5)
    wrong = command("eval", folder, "--text", path, "--conversations", "completion")
    wrong.refuses("line 2: expected a record such as")


def test_standard_input_is_a_text(folder: Path, tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in ("eins", "zwei"))
    path = tmp_path / "records.jsonl"
    path.write_text(content)
    named, piped = (
        json.loads(command("eval", folder, "--text", text, "--json", piped=content.encode()).out)
        for text in (path, "-")
    )
    assert [document.pop("name") for document in piped["documents"]] == [f"standard input, line {n}" for n in (1, 2)]
    assert [document.pop("name") for document in named["documents"]] == [f"{path}, line {n}" for n in (1, 2)]
    for found in (named, piped):
        del found["seconds"]
    assert piped == named
    command("eval", folder, "--text", "-", "--text", "-").refuses("standard input (-) once")


def write_validation(run: Path, ids: list[int], documents: list[int] | None, counted: list[int] | None) -> None:
    """Write the validation split of a run, without the rest of the run."""
    (run / "data").mkdir(exist_ok=True)
    np.save(run / "data" / "validation.npy", np.array(ids, np.uint16))
    for name, values, kind in (("documents", documents, np.int64), ("counted", counted, np.uint8)):
        path = run / "data" / f"validation.{name}.npy"
        path.unlink(missing_ok=True)
        if values is not None:
            np.save(path, np.array(values, kind))


def test_documents_of_a_validation_split_and_tokens_that_do_not_count(folder: Path) -> None:
    """Three documents, of which the second has one token; the last one's ends in the middle do not count."""
    ids = [*b"eins zwei", 65, *"ä und ö, drei".encode()]
    starts = [0, 9, 10]
    write_validation(folder, ids, starts, None)
    running = evaluate_text(folder, ())
    expected, bound = one_by_one(np.array(ids), GEOMETRY.context)
    assert abs(running.loss - expected) <= bound
    assert running.tokens == running.size.bytes == len(ids) - 1
    found = evaluate_text(folder, (), None, TextOptions(by_file=True))
    assert [document.name.rpartition(", ")[2] for document in found.documents] == ["document 1", "document 3"]
    for document, part in zip(found.documents, (ids[:9], ids[10:]), strict=True):
        expected, bound = one_by_one(np.array(part), GEOMETRY.context)
        assert abs(document.loss - expected) <= bound
        assert document.tokens == document.size.bytes == len(part) - 1
    counted = [1] * len(ids)
    counted[12:16] = [0] * 4
    write_validation(folder, ids, starts, counted)
    masked = evaluate_text(folder, (), None, TextOptions(by_file=True)).documents
    assert masked[0] == found.documents[0]
    assert masked[1].tokens == masked[1].size.bytes == found.documents[1].tokens - 4
    assert masked[1].nats < found.documents[1].nats
    write_validation(folder, ids, starts, [0] * len(ids))
    with pytest.raises(DataError, match="tokens that count in the loss, got none of 25"):
        evaluate_text(folder, ())


@pytest.mark.parametrize("counted", [None, [1, 1, 1, 1, 0, 1, 1, 1]])
def test_the_ends_of_documents_have_no_text(counted: list[int] | None, tmp_path: Path) -> None:
    content = json.loads(MADE["smollm"]())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = LibraryTokenizer(json.dumps(content))
    assert tokenizer.end_of_text is not None
    end, ids = tokenizer.end_of_text.id, tokenizer.encode("abcdef")[:3].tolist()
    stream = [*ids, end, *ids, end]
    marks = None if counted is None else np.array(counted, np.uint8)
    starts = np.array([0, 4])
    file = TokenFile(np.array(stream, np.uint16), 500, 1, tmp_path / "x", documents=starts, counted=marks)
    text = tokenizer.decode_following(ids[1:]) + tokenizer.decode_following(ids if counted is None else ids[1:])
    assert _scored_size(tokenizer, file, 0, 8) == (len(text), len(text.encode()))


def test_texts_without_two_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("x")
    for by_file in (False, True):
        with pytest.raises(DataError, match="at least two tokens, one to predict from the other, got 1"):
            evaluate_text(folder, (str(tmp_path / "one.txt"),), None, TextOptions(by_file=by_file))


def test_the_command_prints_a_table_and_json(folder: Path, tmp_path: Path) -> None:
    for number in range(43):
        (tmp_path / f"{number:02}.txt").write_text("ab" + "c" * number)
    found = command("eval", folder, "--text", tmp_path, "--by-file", "--stride=5")
    assert found.status == 0, found.err
    rows = found.out.splitlines()
    assert rows[0].split() == ["loss", "bits/byte", "tokens", "document"]
    assert len(rows) == 1 + 40 + 2
    assert "3 more" in rows[-2]
    assert rows[-1].startswith("loss ")
    content = json.loads(command("eval", folder, "--text", tmp_path, "--by-file", "--stride=5", "--json").out)
    assert (content["stride"], content["context"], len(content["documents"])) == (5, 11, 43)
    assert content["bits_per_byte"] == pytest.approx(content["nats"] / math.log(2) / content["bytes"])
    assert content["tokens"] == sum(document["tokens"] for document in content["documents"])
    command("eval", folder, "--text", tmp_path, "--stride=12").refuses("--stride: expected a number of tokens from 1")


@pytest.mark.parametrize("text", ["ab", "äb", "😀b", "–", "\ufffdb", "b\ufffd"])
def test_the_bytes_of_the_first_token_are_not_scored(text: str) -> None:
    tokenizer = BytesTokenizer()
    assert size_of_first_token(tokenizer, tokenizer.encode(text)[:5], text).bytes == 1
    characters = CharacterTokenizer("".join(sorted(set(text))))
    size = size_of_first_token(characters, characters.encode(text)[:5], text)
    assert size == (1, len(text[0].encode()))


def test_a_beginning_is_given_and_all_of_the_text_is_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BytesTokenizer, "beginning", np.array([7], np.int32))
    (folder / "text.txt").write_text("abcd" * 6)
    found = evaluate_text(folder, (str(folder / "text.txt"),))
    assert found.tokens == found.size.bytes == 24
    ids = np.append(7, np.frombuffer(b"abcd" * 6, np.uint8)).astype(np.int64)
    expected, bound = one_by_one(ids, GEOMETRY.context)
    assert abs(found.loss - expected) <= bound
    assert Model.open(folder).geometry == GEOMETRY
