"""Generation at batch 1: tokens per second of a prompt and of the tokens after it, of threadloom and its peers.

    python -m benchmarks.generation [--shape gpt2|smollm2-135m] [--model FOLDER] [--peer transformers|llama.cpp]

The model has random weights in one of the `SHAPES`, or is a folder in Hugging Face's layout. Every side first computes
the logits after the prompt and after one more token, which must agree; then the sides generate the same number of
tokens in alternating rounds, always the most likely one, and the medians are shown. `--threads` is that of every side.

llama.cpp (`pip install llama-cpp-python`, which builds it) reads GGUF files that threadloom writes. Their tokenizer is
that of bytes, since text is neither read nor written here.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.generation_sides import GenerationSide, LlamaCpp, Ours, Rates, Transformers
from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import ExportedModel, export_model, load_model
from threadloom.stages.data import load_tokenizer
from threadloom.stages.inference import DecodePrecision, Model
from threadloom.stages.layouts import as_weights
from threadloom.stages.models import Geometry, LlamaGeometry, parameter_shapes
from threadloom.stages.storage import StoredFormat
from threadloom.stages.tools.export import print_export

SHAPES: dict[str, Geometry] = {
    "gpt2": Geometry(vocabulary=50257, context=1024, layers=12, heads=12, channels=768),
    "smollm2-135m": LlamaGeometry(
        vocabulary=49152, context=1024, layers=30, heads=9, channels=576, kv_heads=3, head_size=64, mlp_width=1536,
        tied=True,
    ),
}  # fmt: skip
TOLERANCES = {"float32": 1e-4, "bf16": 3e-2, "fp16": 3e-2, "int8": 5e-2, "q8_0": 5e-2}
"""Relative distance of the logits from those of the reference in float32. A weight in bf16 is off by 0.2 % at most, one
in 8 bits by 0.4 % of the largest of its block; the errors of the layers add up as squares."""
LLAMA_CPP_TOLERANCE = 3e-2
"""The same for llama.cpp in float32, whose GELU is a table in float16."""
DTYPES = {"float32": "float32", "bf16": "bfloat16"}
"""Formats of transformers → PyTorch's names."""
GGUF_FORMATS = ("float32", "fp16", "bf16", "q8_0")


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


def our_sides(folder: Path, threads: int) -> Iterator[tuple[str, GenerationSide]]:
    """Yield threadloom in each of its formats."""
    geometry, arena = load_model(folder)
    weights = as_weights(geometry, arena)
    for precision in (DecodePrecision.FLOAT32, DecodePrecision.BF16, DecodePrecision.INT8):
        yield f"threadloom {precision.value}", Ours(weights, geometry, precision, threads)


def transformers_sides(folder: Path, threads: int) -> Iterator[tuple[str, GenerationSide]]:
    """Yield transformers in each of its formats."""
    for name, dtype in DTYPES.items():
        yield f"transformers {name}", Transformers(folder, dtype, threads)


def llama_cpp_sides(folder: Path, temporary: Path, threads: int) -> Iterator[tuple[str, GenerationSide]]:
    """Yield llama.cpp in each of its formats."""
    geometry, arena = load_model(folder)
    temporary.mkdir()
    (temporary / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    tokenizer = load_tokenizer(temporary / "tokenizer.json")
    model = Model(temporary, geometry, as_weights(geometry, arena), tokenizer, None)
    for name in GGUF_FORMATS:
        file = temporary / f"{name}.gguf"
        print_export(lambda: model, file, name, 0)
        yield f"llama.cpp {name}", LlamaCpp(file, geometry.context, threads, float32=name == "float32")


def byte_tokenizer() -> dict[str, object]:
    """Return the smallest tokenizer.json that llama.cpp reads: byte-level, with one merge."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    parts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    vocabulary = {names[byte]: byte for byte in range(256)} | {"ab": 256}
    return {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": parts, "decoder": parts,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
    }  # fmt: skip


def check(sides: Mapping[str, GenerationSide], prompt: Sequence[int]) -> None:
    """Print each side's distance from the reference, the peer in float32; raise SystemExit if one is too far."""
    reference = next(name for name in ("transformers float32", "threadloom float32") if name in sides)
    expected = _two_logits(sides[reference], prompt)
    for name, side in sides.items():
        found = _two_logits(side, prompt)
        distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        print(f"{name:24} logits {distance:.1e} from {reference}")
        allowed = TOLERANCES[name.split()[-1]]
        if not distance <= (max(allowed, LLAMA_CPP_TOLERANCE) if name.startswith("llama.cpp") else allowed):
            raise SystemExit(f"the logits of {name} differ")


def _two_logits(side: GenerationSide, prompt: Sequence[int]) -> Floats:
    first = side.prefill(prompt).copy()
    return np.concatenate([first, side.append(7)])


def table(rounds: Mapping[str, Sequence[Rates]]) -> Iterator[str]:
    """Yield a line for each side and part: median, lowest and highest of its rounds."""
    for name, found in rounds.items():
        for part in ("prefill", "decode"):
            rates = [getattr(rate, part) for rate in found]
            yield f"{name:24} {part:8} {statistics.median(rates):8.1f} ({min(rates):.1f} to {max(rates):.1f})"


def main() -> None:
    """Compare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--peer", choices=["transformers", "llama.cpp"], action="append", help="default: transformers")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of every side")
    options = parser.parse_args()
    peers = options.peer or ["transformers"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or random_model(Path(temporary) / "model", SHAPES[options.shape])
        sides = dict(our_sides(folder, options.threads))
        if "transformers" in peers:
            sides |= transformers_sides(folder, options.threads)
        if "llama.cpp" in peers:
            sides |= llama_cpp_sides(folder, Path(temporary) / "gguf", options.threads)
        vocabulary = load_model(folder)[0].vocabulary
    prompt = np.random.default_rng(1).integers(0, vocabulary, options.prompt).tolist()
    check(sides, prompt)
    rounds: dict[str, list[Rates]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            rounds[name].append(side.rates(prompt, options.tokens))
    lengths = f"prompt of {options.prompt}, then {options.tokens} tokens"
    print(f"\ntokens/s, {lengths}, medians of {options.rounds} rounds (lowest to highest)")
    print(*table(rounds), sep="\n")


if __name__ == "__main__":
    main()
