"""A model as lm-evaluation-harness asks for one, without the harness: its three kinds of requests.

The scores are those of the harness's own model for transformers (`HFLM`): texts are encoded with the tokens that begin
one, and special tokens in them are tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from threadloom.stages.config import SpecialTokens
from threadloom.stages.data import Tokenizer
from threadloom.stages.inference.continuations import encode_continuation, likelihoods, prefix_token
from threadloom.stages.inference.decoder import GenerationError
from threadloom.stages.inference.generation import generate
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.sampling import SamplingSettings
from threadloom.stages.inference.sliding_windows import sliding_windows
from threadloom.stages.inference.text_stream import StopSearch, TextStream
from threadloom.stages.inference.token_scores import ScoredTokens, score_tokens
from threadloom.stages.machine import thread_limit
from threadloom.stages.resolve import float32_settings

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the maximum number of tokens to generate; the first that is there counts."""


ResultT = TypeVar("ResultT")


class HarnessRequest(Protocol):
    """A request of the harness, such as its `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The texts and settings of the request."""


class _Generation(NamedTuple):
    """The settings of a text to generate."""

    tokens: int
    stops: tuple[str, ...]
    sampling: SamplingSettings


class HarnessModel:
    """Answers the requests of lm-evaluation-harness; `stages.tools.evaluate` makes a model of the harness of it."""

    def __init__(
        self,
        path: str | Path,
        base: str | Path | None = None,
        *,
        average: bool = False,
        max_gen_toks: int = 256,
        seed: int = 1234,
        **_unused: object,
    ) -> None:
        """Open a model; `base` and `average` are as in `Model.open`.

        `max_gen_toks` is the maximum number of tokens of a request that names none, `seed` that of requests to sample.
        The harness passes further settings, such as a device, which have no effect.
        """
        super().__init__()
        self.model = Model.open(Path(path), None if base is None else Path(base), average=average)
        self.max_gen_toks, self._seed = max_gen_toks, seed

    @property
    def max_length(self) -> int:
        """The context of the model."""
        return self.model.geometry.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, or the one before a text without a context."""
        return min(self.model.end_ids, default=prefix_token(self.model))

    def loglikelihood(
        self,
        requests: Sequence[HarnessRequest],
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of the second text of each request after the first."""
        encoded = [
            encode_continuation(self.model, request.args[0], request.args[1], SpecialTokens.TOKENS)
            for request in requests
        ]
        found = [(likelihood, greedy) for likelihood, greedy in likelihoods(self.model, encoded)]
        return self._kept("loglikelihood", requests, found)

    def loglikelihood_rolling(
        self,
        requests: Sequence[HarnessRequest],
        disable_tqdm: bool = False,
    ) -> list[float]:
        """Return the log-likelihood of the text of each request, all of its tokens, in windows of the context."""
        windows, owners = list[ScoredTokens](), list[int]()
        for number, request in enumerate(requests):
            found = self._windows(request.args[0])
            windows += found
            owners += [number] * len(found)
        totals = [0.0] * len(requests)
        for owner, scores in zip(owners, score_tokens(self.model, windows), strict=True):
            totals[owner] += float(scores.log_probabilities.sum())
        return self._kept("loglikelihood_rolling", requests, totals)

    def generate_until(
        self,
        requests: Sequence[HarnessRequest],
        disable_tqdm: bool = False,
    ) -> list[str]:
        """Return the text that continues the first text of each request, up to a stop of its settings."""
        chosen = [self._generation(request.args[1]) for request in requests]

        def run(number: int) -> str:
            return self._continued(requests[number].args[0], chosen[number], self._seed + number)

        with float32_settings(), ThreadPoolExecutor(thread_limit().count, "generate") as pool:
            return self._kept("generate_until", requests, list(pool.map(run, range(len(requests)))))

    def _windows(self, text: str) -> list[ScoredTokens]:
        ids = np.append(prefix_token(self.model), self.model.prompt(text, SpecialTokens.TOKENS)).astype(np.int32)
        return [
            ScoredTokens(ids[start : start + inputs], ids[start + inputs + 1 - scored : start + inputs + 1])
            for start, inputs, scored in sliding_windows(len(ids), self.max_length, self.max_length)
        ]

    def _generation(self, settings: Mapping[str, Any]) -> _Generation:
        """Return the settings of a request; raises `GenerationError` if they leave no room for its context."""
        lengths = (settings[name] for name in _LENGTH_NAMES if settings.get(name) is not None)
        tokens, until = int(next(lengths, self.max_gen_toks)), settings.get("until") or []
        if not 0 < tokens < self.max_length:
            raise GenerationError(
                "max_gen_toks",
                expected=f"a number from 1 to {self.max_length - 1}, less than the context of the model",
                got=str(tokens),
                hint="pass --gen_kwargs max_gen_toks=N, or max_gen_toks=N among the arguments of the model",
            )
        temperature = settings.get("temperature")
        samples = settings.get("do_sample")
        if samples is None:
            samples = bool(temperature)
        temperature = float(1.0 if temperature is None else temperature) if samples else 0.0
        sampling = SamplingSettings(temperature, settings.get("top_k") or None, float(settings.get("top_p") or 1.0))
        stops = [until] if isinstance(until, str) else until
        return _Generation(tokens, tuple(stop for stop in stops if stop), sampling)

    def _continued(self, context: str, settings: _Generation, seed: int) -> str:
        model, tokens = self.model, settings.tokens
        prompt = model.prompt(context, SpecialTokens.TOKENS)[-(self.max_length - tokens) :]
        if not len(prompt):
            prompt = np.array([prefix_token(model)], np.int32)
        stream, search = TextStream(model.tokenizer.decode), StopSearch(settings.stops)
        ids, without_text = list[int](), model.ids_without_text
        for token in generate(model.weights, model.geometry, prompt, tokens, settings.sampling, seed, without_text):
            if token in model.end_ids:
                break
            ids.append(token)
            search.add(stream.add(token))
            if search.found:
                break
        # Decoded as a whole, as the harness does: a stream may show a byte as text that has none in its run of bytes.
        text = model.tokenizer.decode([token for token in ids if not _is_special(model.tokenizer, token)])
        return text[: min((at for stop in settings.stops if (at := text.find(stop)) >= 0), default=len(text))]

    def _kept(self, kind: str, requests: Iterable[HarnessRequest], results: list[ResultT]) -> list[ResultT]:
        """Return the results, after the harness's cache of answers, if there is one, has got them."""
        hook = getattr(self, "cache_hook", None)
        add: Callable[..., object] | None = getattr(hook, "add_partial", None)
        if add is not None:
            for request, result in zip(requests, results, strict=True):
                add(kind, request.args, result)
        return results


def _is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Return True for a special token, whose text is another text unless special tokens are read as tokens."""
    text = tokenizer.decode_following([token])
    as_token, as_text = (
        tokenizer.with_special_tokens(special).encode(text).tolist()
        for special in (SpecialTokens.TOKENS, SpecialTokens.TEXT)
    )
    return bool(as_token == [token] != as_text)
