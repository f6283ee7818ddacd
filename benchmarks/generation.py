"""Generation at batch 1: tokens per second of a prompt and of the tokens after it, of threadloom and its peers.

    python -m benchmarks.generation [--shape gpt2|smollm2-135m] [--model FOLDER] [--rounds 5] [--threads 1]

The model has random weights in one of the `SHAPES`, or is a folder in Hugging Face's layout. Every side first computes
the logits after the prompt and after one more token, which must agree; then the sides generate the same number of
tokens in alternating rounds, always the most likely one, and the medians are shown. threadloom decodes in one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import ExportedModel, export_model, load_model
from threadloom.stages.inference import DecodePrecision, Decoder, stored_weights
from threadloom.stages.layouts import ModelWeights, as_weights
from threadloom.stages.models import Geometry, LlamaGeometry, parameter_shapes
from threadloom.stages.storage import StoredFormat

SHAPES: dict[str, Geometry] = {
    "gpt2": Geometry(vocabulary=50257, context=1024, layers=12, heads=12, channels=768),
    "smollm2-135m": LlamaGeometry(
        vocabulary=49152, context=1024, layers=30, heads=9, channels=576, kv_heads=3, head_size=64, mlp_width=1536,
        tied=True,
    ),
}  # fmt: skip
TOLERANCES = {"float32": 1e-4, "bf16": 3e-2, "int8": 5e-2}
"""Relative distance of the logits from those of transformers in float32. A weight in bf16 is off by 0.2 % at most, one
in 8 bits by 0.4 % of the largest of its block; the errors of the layers add up as squares."""


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one round."""

    prefill: float
    decode: float


class Ours:
    """threadloom in one number format."""

    def __init__(self, weights: ModelWeights, geometry: Geometry, precision: DecodePrecision) -> None:
        self._decoder = Decoder(weights, geometry, stored_weights(weights, geometry, precision))

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Return the logits after a prompt."""
        return self._decoder.prefill(prompt)

    def append(self, token: int) -> Floats:
        """Return the logits after one more token."""
        return self._decoder.append(token)

    def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
        """Return the rates of a prompt and of tokens after it."""
        begin = time.perf_counter()
        logits = self.prefill(prompt)
        middle = time.perf_counter()
        for _ in range(tokens):
            logits = self.append(int(logits.argmax()))
        return Rates(len(prompt) / (middle - begin), tokens / (time.perf_counter() - middle))


class Transformers:
    """`generate` of transformers, in one of PyTorch's number formats."""

    def __init__(self, folder: Path, dtype: str, threads: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch = torch
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._cache: Any = None

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Return the logits after a prompt."""
        self._cache = None
        return self._logits(prompt)

    def append(self, token: int) -> Floats:
        """Return the logits after one more token."""
        return self._logits([token])

    def _logits(self, ids: Sequence[int]) -> Floats:
        with self._torch.inference_mode():
            out = self._model(
                input_ids=self._torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = out.past_key_values
        found: Floats = out.logits[0, -1].float().numpy()
        return found

    def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
        """Return the rates; the time of the tokens is that of `generate` less that of its first token."""
        ids = self._torch.tensor([list(prompt)])
        first, whole = (self._seconds(ids, count) for count in (1, tokens + 1))
        return Rates(len(prompt) / first, tokens / (whole - first))

    def _seconds(self, ids: Any, tokens: int) -> float:
        begin = time.perf_counter()
        with self._torch.inference_mode():
            self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - begin


def random_model(folder: Path, geometry: Geometry) -> Path:
    """Write a model with random weights."""
    rng = np.random.default_rng(0)
    arena = Arena(parameter_shapes(geometry))
    for name in parameter_shapes(geometry):
        noise = rng.standard_normal(arena[name].shape, np.float32) * np.float32(0.02)
        arena[name][...] = noise + np.float32(
            name.endswith("weight") and arena[name].ndim < 3 and name.startswith(("ln", "norm"))
        )
    export_model(ExportedModel(folder, arena, geometry, None), folder, StoredFormat.FLOAT32)
    return folder


def check(sides: Mapping[str, Ours | Transformers], prompt: Sequence[int]) -> None:
    """Print each side's distance from transformers in float32; raise SystemExit if one is too far."""
    expected = _two_logits(sides["transformers float32"], prompt)
    for name, side in sides.items():
        found = _two_logits(side, prompt)
        distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        print(f"{name:24} logits {distance:.1e} from transformers in float32")
        if not distance <= TOLERANCES[name.split()[-1]]:
            raise SystemExit(f"the logits of {name} differ")


def _two_logits(side: Ours | Transformers, prompt: Sequence[int]) -> Floats:
    first = side.prefill(prompt).copy()
    return np.concatenate([first, side.append(7)])


def main() -> None:
    """Compare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the peers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or random_model(Path(temporary) / "model", SHAPES[options.shape])
        geometry, arena = load_model(folder)
        weights = as_weights(geometry, arena)
        sides: dict[str, Ours | Transformers] = {
            f"threadloom {precision.value}": Ours(weights, geometry, precision)
            for precision in (DecodePrecision.FLOAT32, DecodePrecision.BF16, DecodePrecision.INT8)
        }
        for precision, dtype in (("float32", "float32"), ("bf16", "bfloat16")):
            sides[f"transformers {precision}"] = Transformers(folder, dtype, options.threads)
    prompt = np.random.default_rng(1).integers(0, geometry.vocabulary, options.prompt).tolist()
    check(sides, prompt)
    rounds: dict[str, list[Rates]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            rounds[name].append(side.rates(prompt, options.tokens))
    lengths = f"prompt of {options.prompt}, then {options.tokens} tokens"
    print(f"\ntokens/s, {lengths}, medians of {options.rounds} rounds (lowest to highest)")
    for name, found in rounds.items():
        for part in ("prefill", "decode"):
            rates = [getattr(rate, part) for rate in found]
            print(f"{name:24} {part:8} {statistics.median(rates):8.1f} ({min(rates):.1f} to {max(rates):.1f})")


if __name__ == "__main__":
    main()
