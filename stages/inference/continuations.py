"""Likelihoods of texts that continue others, by the rules of lm-evaluation-harness (`TemplateLM` and `HFLM`).

A context and its continuation are encoded as one text, and the tokens of the context alone are taken off its beginning,
so that the border is where the tokens of a text would have it. White space at the end of the context belongs to the
continuation. Whatever does not fit into the model's context is cut from the left.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from threadloom.kernels import TokenIds
from threadloom.stages.config import SpecialTokens
from threadloom.stages.inference.decoder import GenerationError
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.token_scores import ScoredTokens, score_tokens


class Continuation(NamedTuple):
    """Tokens that continue others."""

    context: TokenIds
    """(n,), at least one token."""
    ids: TokenIds
    """(m,), at least one token."""


class Likelihood(NamedTuple):
    """The likelihood of a continuation."""

    log_likelihood: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """True if each of its tokens is the most likely one."""


def prefix_token(model: Model) -> int:
    """Return the token before a text without a context.

    It is the one with which the tokenizer begins a text, or that ends a text, or the first of a newline.
    """
    tokenizer = model.tokenizer
    if len(tokenizer.beginning):
        return int(tokenizer.beginning[0])
    if tokenizer.end_of_text is not None:
        return tokenizer.end_of_text.id
    return int(model.default_prompt()[0])


def encode_continuation(
    model: Model, context: str, continuation: str, special: SpecialTokens = SpecialTokens.TEXT
) -> Continuation:
    """Return the tokens of a context and of the text that continues it; `special` is as in `Model.prompt`.

    Raises `GenerationError` for a continuation without a token of its own, or with more than the context of the model.
    """
    space = len(context) - len(context.rstrip())
    if space:
        context, continuation = context[:-space], context[-space:] + continuation
    if context:
        before = model.prompt(context, special)
        ids = model.prompt(context + continuation, special)[len(before) :]
    else:
        before = np.array([prefix_token(model)], np.int32)
        ids = model.tokenizer.with_special_tokens(special).encode(continuation)
        if len(ids) and ids[0] == before[0]:
            ids = ids[1:]
    limit = model.geometry.context
    if not 1 <= len(ids) <= limit:
        raise GenerationError(
            f"the continuation {_shortened(continuation)}",
            expected=f"1 to {limit:,} tokens, the context of the model",
            got=f"{len(ids):,}",
            cause=None if len(ids) else "its text is part of the last token of the context",
        )
    return Continuation(before, ids)


def likelihoods(
    model: Model, continuations: Sequence[Continuation], done: Callable[[int], None] = lambda _: None
) -> list[Likelihood]:
    """Return the likelihood of each continuation; `done` is as in `score_tokens`."""
    requests = [_request(model, continuation) for continuation in continuations]
    return [
        Likelihood(float(scores.log_probabilities.sum()), bool(scores.greedy.all()))
        for scores in score_tokens(model, requests, done)
    ]


def _request(model: Model, continuation: Continuation) -> ScoredTokens:
    whole = np.concatenate([continuation.context, continuation.ids])
    return ScoredTokens(whole[-(model.geometry.context + 1) :][:-1].astype(np.int32), continuation.ids)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
