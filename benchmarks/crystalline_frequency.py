"""The validation loss of `benchmarks.crystalline` by how frequent the predicted token is.

Rare tokens are where layouts of the embedding act. The vocabulary is put in the order of frequency in the training
split, and cut into five classes such that each has about a fifth of that text: the first has a few tokens, the last
most of the vocabulary.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from benchmarks.crystalline_results import Results
from benchmarks.crystalline_rows import BASELINE, Variant, variants_of
from threadloom.stages.data import TokenFile, prepared_order
from threadloom.stages.inference import Model, ScoredTokens, score_tokens

CLASSES = 5
NAMES = ("most frequent fifth of the text", "second", "third", "fourth", "rarest fifth")
TOKENS = 32_768
"""Most tokens of the validation split that are scored."""


def classes_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each token (V,), 0 for the most frequent, given how often each occurs (V,)."""
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    middles = ends - counts[order] / 2
    found = np.empty(len(counts), np.int64)
    found[order] = np.minimum(middles * CLASSES // max(int(ends[-1]), 1), CLASSES - 1).astype(np.int64)
    return found


def losses_by_frequency(run: Path, most: int = TOKENS) -> tuple[float | None, ...]:
    """Return the mean loss of each class in nats per token; None for a class without a token in what is scored."""
    model = Model.open(run)
    vocabulary, context = model.geometry.vocabulary, model.geometry.context
    order = prepared_order(run / "data")
    train, validation = (
        TokenFile.open(run / "data" / f"{name}.npy", vocabulary, context, order) for name in ("train", "validation")
    )
    by_row = train.counts()
    counts = by_row if order is None else by_row[order.extended(vocabulary).rows]
    windows = []
    for first in range(0, min(len(validation) - context, most), context):
        ids, targets = np.empty((2, context), np.int32)
        validation.read(first, ids, targets)
        windows.append(ScoredTokens(ids, targets))
    losses = -np.concatenate([scores.log_probabilities for scores in score_tokens(model, windows)])
    classes = classes_of(counts)[np.concatenate([window.targets for window in windows])]
    sums = np.bincount(classes, weights=losses, minlength=CLASSES)
    sizes = np.bincount(classes, minlength=CLASSES)
    return tuple(float(total / size) if size else None for total, size in zip(sums, sizes, strict=True))


def frequency_table(results: Results, config: str, precision: str) -> str:
    """Return the table of one configuration, as differences from the plain training; empty if nothing is known."""
    plain = results.by_frequency(config, Variant(BASELINE), precision)
    if not plain:
        return ""
    rows = [["form", *NAMES, "seeds"], ["---"] * (CLASSES + 2)]
    rows.append([BASELINE, *_means(plain.values(), ".4f"), str(len(plain))])
    for _, variant in variants_of(config):
        own = results.by_frequency(config, variant, precision)
        seeds = sorted(own.keys() & plain.keys())
        if variant.name == BASELINE or not seeds:
            continue
        away = [
            tuple(None if a is None or b is None else a - b for a, b in zip(own[seed], plain[seed], strict=True))
            for seed in seeds
        ]
        rows.append([variant.name, *_means(away, "+.4f"), str(len(seeds))])
    title = f"`{config}`, {precision}: validation loss by the frequency of the predicted token"
    return "\n".join([title, "", *("| " + " | ".join(cells) + " |" for cells in rows), ""])


def _means(losses: Iterable[tuple[float | None, ...]], form: str) -> list[str]:
    """Return the mean of each class over the seeds that have it."""
    found = []
    for column in zip(*losses, strict=True):
        known = [loss for loss in column if loss is not None]
        found.append(format(mean(known), form) if known else "none")
    return found
