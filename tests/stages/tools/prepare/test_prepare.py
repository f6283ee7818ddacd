"""`threadloom prepare`: the report, starting again after a kill, two processes, and training on the folder."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from loguru import logger

from tests.stages.support import WAIT, command
from threadloom.stages.config import Config, ConfigError, Gpt2Config
from threadloom.stages.data import (
    DataError,
    load_tokenizer,
    open_prepared,
    prepare,
    read_corpus,
    read_settings,
    require_tokenizer_of,
)
from threadloom.stages.data.chunked_text import StringText
from threadloom.stages.resolve import apply_overrides
from threadloom.stages.storage import directory_lock
from threadloom.stages.tools.prepare.preparation import prepare_folder, report_text

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[4]
MODEL = Gpt2Config(context=4, layers=1, heads=1, channels=4, vocab_size=300)


def config(text: Path, *overrides: str) -> Config:
    base = Config(name="x", model=MODEL, batch_size=4, steps=3)
    return apply_overrides(base, [f'data.text=["{text}"]', "data.tokenizer=bpe", "data.invalid=skip", *overrides])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return a file of 120 documents, of which some are repeated, with an invalid and an empty record at the end."""
    chosen = random.Random(7)
    texts = ["".join(chosen.choices("abcde \n", k=chosen.randint(1, 60))) for _ in range(100)]
    texts = [*texts[:80], *texts[:5], texts[0], *texts[80:], texts[3], *(["the last", "the last"] * 7)[:13]]
    path = tmp_path / "corpus" / "a.jsonl"
    path.parent.mkdir()
    lines = [json.dumps({"text": text}) for text in texts]
    path.write_text("\n".join([*lines, '{"other": 1}', '{"text": ""}']) + "\n")
    (path.parent / "b.png").write_bytes(b"\x89PNG")
    return path


def test_the_report_says_what_is_in_the_folder(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--text", records.parent, "--set", "data.tokenizer=bpe", "--set", "model.vocab_size=300")
    made = command("prepare", *arguments, "--set", "data.invalid=skip", "--set", "model.context=4", "--out", out)
    assert made.status == 0, made.err
    report = json.loads((out / "report.json").read_text())
    texts = [json.loads(line).get("text") for line in records.read_text().splitlines()]
    kept = [text for text in texts if text]
    training = report["training"]["documents"]
    tokenizer = load_tokenizer(out)
    lengths = sorted(len(tokenizer.encode(text)) + 1 for text in kept[:training])
    assert report["documents"] == len(kept) == training + report["validation"]["documents"]
    assert report["training"]["tokens"] == sum(lengths)
    assert report["training"]["lengths"]["0"] == lengths[0]
    assert report["training"]["lengths"]["50"] == lengths[-(-len(lengths) // 2) - 1]
    assert report["training"]["lengths"]["100"] == lengths[-1]
    seen = set(kept[:training])
    assert report["repeated_documents"]["training"] == training - len(seen) > 0
    held_out = kept[training:]
    inside = [text for text in held_out if text in seen]
    others = [text for text in held_out if text not in seen]
    assert report["repeated_documents"]["validation"] == len(inside) + len(others) - len(set(others)) > 0
    assert (report["files"][0]["skipped"], report["files"][0]["empty"]) == (1, 1)
    assert "line 121: expected a field 'text'" in report["files"][0]["reasons"][0]
    assert [Path(found["path"]).name for found in report["left_out"]] == ["b.png"]
    for part in ("skipped: 1 invalid and 1 empty records", "1 file,", "repeated: ", "train --data"):
        assert part in made.out
    assert "up to date" in report_text(prepare_folder(config(records.parent), out))


def test_standard_input_is_a_text(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_file = prepare_folder(config(records), tmp_path / "file")
    with records.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        piped = prepare_folder(config(Path("-")), tmp_path / "piped")
    assert (piped.documents, piped.files[0].skipped) == (of_file.documents, 1)
    for name in ("train.npy", "validation.documents.npy", "tokenizer.json"):
        assert (tmp_path / "piped" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.stages.tools.prepare.test_prepare import config
from threadloom.stages.data.encoding import pipeline, units
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.tools.prepare.preparation import prepare_folder
units.BATCH_CHARACTERS, pipeline.COMMIT_CHARACTERS = 100, 500
add, calls = SplitFiles.add, []
def killed_add(self, encoded):
    add(self, encoded)
    calls.append(encoded)
    if len(calls) == 24:
        os.kill(os.getpid(), signal.SIGKILL)
SplitFiles.add = killed_add
prepare_folder(config(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_killed_preparation_goes_on_with_the_same_tokens(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(records), str(out)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = json.loads((out / ".preparing" / "journal.json").read_text())
    assert journal["batches"] > 0
    for module, name, value in (("units", "BATCH_CHARACTERS", 100), ("pipeline", "COMMIT_CHARACTERS", 500)):
        monkeypatch.setattr(f"threadloom.stages.data.encoding.{module}.{name}", value)
    trained: list[object] = []
    train = "threadloom.stages.data.bpe_tokenizer.BpeTokenizer.train"
    with monkeypatch.context() as patch:
        patch.setattr(train, lambda *arguments: trained.append(arguments))
        prepare_folder(config(records), out)
    assert not trained, "the tokenizer was there"
    prepare_folder(config(records), whole)
    assert not (out / ".preparing").exists()
    for path in sorted(whole.iterdir()):
        if path.name != "report.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_second_process_waits_for_the_first_and_uses_its_tokens(tmp_path: Path) -> None:
    out, waiting = tmp_path / "out", threading.Event()
    made = config(tmp_path, "data.tokenizer=bytes")
    text = StringText("a text\n" * 40)
    first = prepare(made.data, made.model, text, out)
    found = []

    def second() -> None:
        found.append(prepare(made.data, made.model, text, out).reused)

    sink = logger.add(lambda line: waiting.set() if "another process prepares a text" in line else None)
    try:
        with directory_lock(out, "unused"):  # as the first process does until it has finished
            thread = threading.Thread(target=second)
            thread.start()
            assert waiting.wait(WAIT)
            assert not found
        thread.join(WAIT)
    finally:
        logger.remove(sink)
    assert (first.reused, found) == (False, [True])


def test_a_run_begins_with_the_files_of_a_prepared_folder(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(config(records, "data.token_order=frequency"), out)
    prepared = read_settings(out)
    assert (prepared.vocab_size, prepared.data.prepared) == (300, str(out))
    expected = prepare(config(records).data, MODEL, read_corpus(config(records).data), tmp_path / "other")
    data = open_prepared(prepared.data, MODEL, tmp_path / "run")
    assert data.order is not None
    assert data.order.ids[data.train.ids].tolist() == expected.train.ids.tolist()
    assert (tmp_path / "run" / "train.npy").samefile(out / "train.npy")
    for path in out.iterdir():
        path.unlink()
    again = open_prepared(prepared.data, MODEL, tmp_path / "run")
    assert again.train.ids.tolist() == data.train.ids.tolist()
    with pytest.raises(DataError, match=r"expected a folder that `threadloom prepare` has completed.*No such file"):
        open_prepared(prepared.data, MODEL, tmp_path / "another run")


def test_settings_that_a_folder_was_not_prepared_with_are_refused(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(config(records), out)
    changed = msgspec.structs.replace(read_settings(out).data, train_fraction=0.5)
    with pytest.raises(ConfigError, match=r"data\.train_fraction: expected 0\.9, with which .*out was prepared"):
        open_prepared(changed, MODEL, tmp_path / "run")
    (out / "train.npy").write_bytes((out / "train.npy").read_bytes()[:-2] + b"\7\0")
    with pytest.raises(DataError, match="the token files that its manifest describes"):
        open_prepared(read_settings(out).data, MODEL, tmp_path / "run")
    other = tmp_path / "tokenizer.json"
    other.write_text((out / "tokenizer.json").read_text() + " ")
    fine_tuned = apply_overrides(config(records), ["data.tokenizer=pretrained", f"data.tokenizer_path={other}"])
    with pytest.raises(
        ConfigError, match=r"data\.prepared: expected a text prepared with the tokenizer of .*another one"
    ):
        require_tokenizer_of(fine_tuned.data, out)
    refused = command("train", "--data", out, "--text", records, "--out", tmp_path / "run")
    assert refused.status == 2
    assert "omit --text" in refused.err
