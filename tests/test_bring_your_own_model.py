"""The guides for models that come in, followed word by word: their commands and Python, in order, in an empty folder.

A small random model takes the place of the one that the guide fetches. Blocks are run and compared as in
`tests.test_docs`, but commands are run too, and the Python blocks are those of one session.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loguru import logger

from tests.stages.checkpoint.llama_folder import CONFIG, tensors_of, write_folder
from tests.stages.data.made_tokenizers import CHAT_TOKENS, MADE
from tests.stages.support import STORY, fastest_in_float32
from tests.test_docs import ROOT, Block, blocks_of, normalised
from threadloom.stages.cli import main

pytestmark = [pytest.mark.timeout(300), STORY]  # may compile the kernels of a Llama with adapters

PAGE = ROOT / "docs" / "guide" / "models.md"
ADAPTERS_PAGE = ROOT / "docs" / "guide" / "lora.md"
MODEL = Path("models/SmolLM2-135M")


def make_model(folder: Path) -> None:
    """Write a random model of the class of SmolLM2, with a tokenizer of its kind."""
    tokenizer = json.loads(MADE["smollm"]())
    rows = len({*tokenizer["model"]["vocab"], *CHAT_TOKENS})
    config = CONFIG | {
        "vocab_size": rows, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    tensors = {
        name: np.ones_like(tensor) if "norm" in name else tensor * np.float32(0.02)
        for name, tensor in tensors_of(config).items()
    }
    folder.mkdir(parents=True)
    write_folder(folder, config, tensors)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": CHAT_TOKENS[0]}))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with the model, on a machine whose fastest precision is float32."""
    monkeypatch.chdir(tmp_path)
    fastest_in_float32(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("threadloom.stages.run.estimate.MAX_SECONDS", 0.5)
    make_model(MODEL)
    yield tmp_path
    logger.remove()  # the handlers of the command line


def run_command(line: str) -> str:
    """Return the standard output of a command; that of threadloom runs in this process, with its loaded kernels."""
    words = shlex.split(line)
    if words[0] == "threadloom":
        done = CliRunner().invoke(main, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.stderr}"
        return str(done.stdout)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-ec", line], check=True, capture_output=True, text=True, env=environment).stdout


def followed(page: str) -> Iterator[tuple[Block, Block | None, str]]:
    """Run a page; yield each block that is run, the block with its expected output (or None), and its output."""
    namespace: dict[str, Any] = {}
    blocks = blocks_of(page)
    for block, after in pairwise([*blocks, None]):
        assert block is not None
        shown = after if after is not None and after.title.startswith("prints") else None
        if block.language == "console" and not (block.reason or "").startswith("it needs a network"):
            lines = block.text.replace("\\\n", " ").splitlines()
            assert all(line.startswith("$ ") for line in lines)
            yield block, shown, "".join(run_command(line.removeprefix("$ ")) for line in lines)
        elif block.language == "python" and block.reason != "it needs PEFT":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * block.line + block.text, "guide", "exec"), namespace)
            yield block, shown, out.getvalue()


def last_lines(output: str, count: int) -> str:
    return "\n".join(output.splitlines()[-count:])


def test_the_guide_is_followed_from_top_to_bottom(workplace: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    losses, ran = [], 0
    for block, shown, output in followed(page):
        ran += 1
        if shown is not None:  # a sample before the shown lines is random
            found = last_lines(output, len(shown.text.splitlines()))
            assert normalised(found, shown.title) == normalised(shown.text, shown.title), f"{PAGE}:{block.line}"
        losses += [float(loss) for loss in re.findall(r"^loss ([\d.]+) nats", output, re.MULTILINE)]
    assert ran == len([block for block in blocks_of(page) if block.language in ("console", "python")]) - 1
    before, after = losses
    assert after < before
    assert {path.name for path in Path("models/book").iterdir()} >= {"config.json", "model.safetensors"}
    assert Path("book.gguf").read_bytes()[:4] == b"GGUF"


def test_the_guide_to_adapters_is_followed_from_top_to_bottom(workplace: Path) -> None:
    outputs = [output for _, _, output in followed(ADAPTERS_PAGE.read_text(encoding="utf-8"))]
    assert len(outputs) == 5
    before, after = (float(loss) for loss in re.findall(r"^loss ([\d.]+) nats", outputs[2], re.MULTILINE))
    assert after < before
    merged = {path.name for path in Path("models/merged").iterdir()}
    assert merged >= {"config.json", "model.safetensors", "tokenizer.json"}
    checkpoint = Path("runs/lora/checkpoints/step-000020")
    assert json.loads((checkpoint / "adapter_config.json").read_text())["r"] == 8
