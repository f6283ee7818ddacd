"""The sides of `benchmarks.generation`: threadloom, transformers and llama.cpp, each in one number format."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from threadloom.kernels import Floats
from threadloom.stages.inference import DecodePrecision, Decoder, stored_weights
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.models import Geometry


@dataclass(frozen=True)
class Rates:
    """Tokens per second of one round."""

    prefill: float
    decode: float


class GenerationSide(Protocol):
    """A model in one number format, with a cache of one sequence."""

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Return the logits after a prompt, which begins a sequence."""

    def append(self, token: int) -> Floats:
        """Return the logits after one more token."""

    def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
        """Return the rates of a prompt and of the most likely tokens after it."""


def greedy_rates(side: GenerationSide, prompt: Sequence[int], tokens: int) -> Rates:
    """Return the rates of a side whose `append` is its way to generate."""
    begin = time.perf_counter()
    logits = side.prefill(prompt)
    middle = time.perf_counter()
    for _ in range(tokens):
        logits = side.append(int(logits.argmax()))
    return Rates(len(prompt) / (middle - begin), tokens / (time.perf_counter() - middle))


class Ours:
    """threadloom, several threads of which divide a token; a prompt has one. Implements `GenerationSide`."""

    def __init__(self, weights: ModelWeights, geometry: Geometry, precision: DecodePrecision, threads: int) -> None:
        self._decoder = Decoder(stored_weights(weights, geometry, precision), geometry, threads)

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Process the prompt."""
        return self._decoder.prefill(prompt)

    def append(self, token: int) -> Floats:
        """Process the token."""
        return self._decoder.append(token)

    def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
        """Measure."""
        try:
            return greedy_rates(self, prompt, tokens)
        finally:
            self._decoder.close()


class Transformers:
    """`generate` of transformers, in one of PyTorch's number formats. Implements `GenerationSide`."""

    def __init__(self, folder: Path, dtype: str, threads: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch = torch
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._cache: Any = None

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Process the prompt."""
        self._cache = None
        return self._logits(prompt)

    def append(self, token: int) -> Floats:
        """Process the token."""
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
        """Measure `generate`; the time of the tokens is that of a whole call less that of its first token."""
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


class LlamaCpp:
    """llama.cpp through its Python package llama-cpp-python, on a GGUF file. Implements `GenerationSide`.

    Its cache of keys and values is in float32 for a file in float32, otherwise in float16, its default.
    """

    def __init__(self, file: Path, context: int, threads: int, *, float32: bool) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise SystemExit(f"--peer llama.cpp needs the package llama-cpp-python: {error}") from error
        kind = llama_cpp.GGML_TYPE_F32 if float32 else llama_cpp.GGML_TYPE_F16
        self._model: Any = llama_cpp.Llama(
            str(file), n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, type_k=kind,
            type_v=kind, verbose=False,
        )  # fmt: skip

    def prefill(self, prompt: Sequence[int]) -> Floats:
        """Process the prompt."""
        self._model.reset()
        return self._logits(prompt)

    def append(self, token: int) -> Floats:
        """Process the token."""
        return self._logits([token])

    def _logits(self, ids: Sequence[int]) -> Floats:
        self._model.eval(list(ids))
        values = self._model._ctx.get_logits_ith(-1)  # `scores` has them only if it keeps those of every token
        found: Floats = np.ctypeslib.as_array(values, shape=(self._model.n_vocab(),))
        return found

    def rates(self, prompt: Sequence[int], tokens: int) -> Rates:
        """Measure."""
        return greedy_rates(self, prompt, tokens)
