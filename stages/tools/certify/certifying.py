"""The certificate of a model: the exact forward pass, and its distances to those of the kernels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import ConfigError, Precision
from threadloom.stages.data import DataError, TokenFile, prepared_order, read_text
from threadloom.stages.inference import Model
from threadloom.stages.models import Geometry
from threadloom.stages.tools.certify.balls import flint, matrix, radius, working_precision
from threadloom.stages.tools.certify.comparison import ExactHead, HeadOfModelErrors, LayerErrors, layer_errors
from threadloom.stages.tools.certify.exact_model import ExactGpt2
from threadloom.stages.tools.certify.kernel_run import run_kernels

LONGEST = 600.0
"""Seconds above which an estimate is refused."""
LEAST_BITS = 128
"""Default of the bits of a model with few blocks."""
ELEMENT_PRODUCTS = 1000
"""Products within a matrix that take the time of one number's element-wise operations."""


@dataclass(frozen=True)
class PrecisionErrors:
    """The distances of one precision."""

    precision: Precision
    layers: tuple[LayerErrors, ...]
    head: HeadOfModelErrors
    kernel_loss: float


@dataclass(frozen=True)
class Certificate:
    """Proven distances of a model's kernels to the exact model, on some tokens."""

    model: Path
    step: int | None
    geometry: Geometry
    tokens: int
    bits: int
    loss: float
    """The exact mean loss, rounded."""
    radius: float
    """Upper bound of the radii of the balls of the last residual stream."""
    precisions: tuple[PrecisionErrors, ...]
    seconds: float


def certify_model(
    run: Path,
    texts: tuple[str, ...],
    tokens: int,
    bits: int | None,
    precisions: Sequence[Precision],
    *,
    force: bool,
    report: Callable[[str], None],
) -> Certificate:
    """Return the certificate of a run's newest model, on the first tokens of texts or of its validation split.

    The default of `bits` grows with the number of blocks, each of which widens the balls by three or four digits. Lines
    about the progress go to `report`. Raises ConfigError without python-flint, for a model of another
    architecture, for more tokens than the context and, unless `force`, for a model that would take too long.
    """
    begin = time.perf_counter()
    flint()
    model = Model.open(run)
    _require_gpt2(model)
    if tokens > model.geometry.context:
        raise ConfigError(
            "--tokens",
            expected=f"at most {model.geometry.context:,}, the context of the model",
            got=f"{tokens:,}",
            hint="errors are those of one sequence",
        )
    ids = _ids(model, run, texts, tokens)
    bits = bits or max(LEAST_BITS, 64 + 16 * model.geometry.layers)
    with working_precision(bits):
        _require_time(model.geometry, len(ids) - 1, len(precisions), force, report)
        certificate = certify_ids(model.geometry, model.weights, ids, precisions, report)
    loss, errors, width = certificate
    return Certificate(
        model.path, model.step, model.geometry, len(ids) - 1, bits, loss, width, errors, time.perf_counter() - begin
    )


def certify_ids(
    geometry: Geometry,
    weights: Any,
    ids: NDArray[np.int32],
    precisions: Sequence[Precision],
    report: Callable[[str], None],
) -> tuple[float, tuple[PrecisionErrors, ...], float]:
    """Return the exact loss, the distances and the largest radius for T + 1 tokens, within `working_precision`."""
    runs = []
    for precision in precisions:
        report(f"kernels in {precision.value}")  # their first call on a machine compiles them
        runs.append(run_kernels(precision, geometry, weights, ids))
    exact = ExactGpt2(geometry, weights, ids[:-1])
    layers: list[list[LayerErrors]] = [[] for _ in runs]
    width = 0.0
    for n in range(geometry.layers):
        layer = exact.layer(n)
        for found, run in zip(layers, runs, strict=True):
            found.append(layer_errors(run, n, layer))
        width = radius(layer.x)
        report(f"block {n + 1} of {geometry.layers}")
    head = ExactHead(ids[1:], tuple(runs))
    for first, logits in exact.logits():
        head.add(first, logits)
        report(f"logits of {first + logits.ncols():,} of {geometry.vocabulary:,} tokens")
    of_model = zip(runs, layers, head.errors(), strict=True)
    errors = tuple(PrecisionErrors(run.precision, tuple(found), of, run.loss) for run, found, of in of_model)
    return float(head.loss), errors, width


def _require_gpt2(model: Model) -> None:
    if model.geometry.architecture != "gpt2":
        raise ConfigError(
            str(model.path),
            expected="a GPT-2: ball arithmetic is written for that architecture alone",
            got=f"a model of the architecture {model.geometry.architecture}",
            hint="threadloom eval computes its loss in float32",
        )


def _ids(model: Model, run: Path, texts: tuple[str, ...], tokens: int) -> NDArray[np.int32]:
    """Return the first `tokens` + 1 ids, or fewer of a shorter text. Raises ConfigError or DataError."""
    path = run / "data" / "validation.npy"
    if texts:
        parts, count = [], 0
        for part in model.tokenizer.encode_chunks(read_text(texts).chunks()):
            parts.append(part)
            count += len(part)
            if count > tokens:
                break
        ids = np.concatenate([np.zeros(0, np.int32), *parts])[: tokens + 1]
    elif path.exists():
        context = model.geometry.context
        file = TokenFile.open(path, model.geometry.vocabulary, context, prepared_order(path.parent))
        ids = file.tokenizer_ids(0, tokens + 1)
    else:
        raise ConfigError(
            str(path),
            expected="the validation tokens of a run",
            got="no such file",
            hint="pass a text with --text FILE_OR_DIR",
        )
    if len(ids) < 2:
        expected = "a text of at least two tokens, one to predict from the other"
        raise DataError(texts[0] if texts else str(path), expected=expected, got=f"{len(ids)}")
    if not 0 <= ids.min() <= ids.max() < model.geometry.vocabulary:
        rows = f"ids from 0 to {model.geometry.vocabulary - 1}, for which the model has rows"
        raise DataError(texts[0] if texts else str(path), expected=rows, got=f"ids up to {ids.max()}")
    return ids.astype(np.int32)


def estimated_seconds(geometry: Geometry, tokens: int, precisions: int, second: float) -> float:
    """Return the time of a certificate; `second` is the number of products of matrices in a second."""
    c, n, v = geometry.channels, geometry.layers, geometry.vocabulary
    weights = n * 12 * c * c + v * c
    products = tokens * weights + n * (1 + precisions) * 2 * tokens * tokens * c
    of_layer = tokens * c * 40 + geometry.heads * tokens * tokens * (2 + 5 * precisions)
    elements = n * of_layer + tokens * v * (4 + precisions) + weights
    return (products + ELEMENT_PRODUCTS * elements / 4) / second


def _speed() -> float:
    """Return the measured number of products in a second, of matrices of balls."""
    a = matrix(np.random.default_rng(0).normal(size=(64, 256)))
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < 0.05:
        a * a.transpose()
        count += 1
    return count * 64 * 64 * 256 / spent


def _require_time(geometry: Geometry, tokens: int, precisions: int, force: bool, report: Callable[[str], None]) -> None:
    seconds = estimated_seconds(geometry, tokens, precisions, _speed())
    report(f"about {seconds:,.0f} s")
    if seconds > LONGEST and not force:
        raise ConfigError(
            "certify",
            expected=f"a certificate that takes at most {LONGEST / 60:.0f} minutes",
            got=f"about {seconds / 60:,.0f} minutes for {tokens} tokens of this model ({geometry})",
            hint="fewer --tokens, fewer --bits, one --precision; or --force",
        )
