"""Attention and positions within borders of documents: each as if it were a sequence of its own, bit for bit.

Dropout of the probabilities is that of the sequence: it follows from the places of query and key in it.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from tests.error_bounds import IN_BF16, IN_FLOAT32, IN_FP16, attention_tensors, with_bounds
from tests.kernels.bits16.formats import BF16, FP16, FP32, Format
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.comparison import assert_close
from tests.kernels.support import DROPOUT_KEY
from tests.reference import dropout as masks_of_dropout
from threadloom.kernels.bits16 import attention as attention16
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_scratch_shapes
from threadloom.kernels.common import attention_dropout, embedding_backward, rotary_backward, rotary_forward
from threadloom.kernels.common.documents import DocumentStarts, document_end, position_of
from threadloom.kernels.common.tensors import (
    ATTENTION_TILE,
    NO_DROPOUT,
    AttentionActivations,
    Dropout,
    DropoutRates,
    HeadCounts,
)
from threadloom.kernels.float32.attention import attention_backward, attention_forward
from threadloom.kernels.float32.embedding import embedding_forward
from threadloom.kernels.simd.bfloat16 import round_to_bf16
from threadloom.kernels.simd.features import DotPath

pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before

TOKENS = 150
LENGTHS = ((1, 70, 2, 33, 44), (97, 53), (150,))
"""Lengths of the documents of each sequence: shorter and longer than tiles, after longer and shorter ones."""

STORAGES = {FP32: IN_FLOAT32, BF16: IN_BF16, FP16: IN_FP16}

Array = NDArray[Any]


def starts_of(lengths: tuple[tuple[int, ...], ...]) -> DocumentStarts:
    """Return the row at which the document of each row begins."""
    each = [np.repeat(np.cumsum((0, *docs[:-1])), docs) for docs in lengths]
    return np.concatenate(each).astype(np.int32)


def documents_of(lengths: tuple[tuple[int, ...], ...]) -> list[slice]:
    """Return the rows of each document."""
    ends = np.cumsum([length for docs in lengths for length in docs])
    return [slice(int(end) - length, int(end)) for end, length in zip(ends, sum(lengths, ()), strict=True)]


def test_ends_and_positions() -> None:
    starts, none = starts_of(((2, 1, 2), (4, 1))), np.zeros(0, np.int32)
    ends = []
    begin = 0
    while begin < 10:
        begin = document_end(begin, 5, starts)
        ends.append(begin)
    assert ends == [2, 3, 5, 9, 10]
    assert [document_end(begin, 5, none) for begin in (0, 5)] == [5, 10]
    assert [position_of(row, 5, starts) for row in range(10)] == [0, 1, 0, 0, 1, 0, 1, 2, 3, 0]
    assert [position_of(row, 5, none) for row in range(10)] == [0, 1, 2, 3, 4] * 2


def attend(
    qkv: Array,
    d_out: Array,
    sequences: int,
    heads: HeadCounts,
    starts: DocumentStarts,
    garbage: float,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[Array, Array, Array]:
    """Return output, log-sum-exp (H, R) and gradient of `qkv`; scratch is filled with `garbage` before each pass."""
    rows, channels = d_out.shape
    tokens, size = rows // sequences, channels // heads.query
    out, d_qkv = np.empty_like(d_out), np.empty_like(qkv)
    acts = AttentionActivations(qkv, out, np.empty((sequences, heads.query, tokens), np.float32), starts, dropout)
    if qkv.dtype == np.float32:
        scores = np.full((2, ATTENTION_TILE, TOKENS), garbage, np.float32)
        attention_forward(acts, sequences, heads, scores[0])
        scores.fill(garbage)
        attention_backward(d_out, acts, sequences, heads, d_qkv, scores)
    else:
        for step in range(2):
            shapes = attention_scratch_shapes(TOKENS, size, heads, qkv.dtype)
            arrays = {
                name: np.full(shape, garbage if np.dtype(kind) == np.float32 else 0x7FC0, kind)
                for name, (shape, kind) in shapes.items()
            }
            scratch = AttentionScratch(**arrays)
            if step == 0:
                attention16.attention_forward(acts, sequences, heads, scratch)
            else:
                attention16.attention_backward(d_out, acts, sequences, heads, d_qkv, scratch)
    return out, acts.lse.swapaxes(0, 1).reshape(heads.query, rows), d_qkv


def numbers(rng: np.random.Generator, shape: tuple[int, int], kind: DTypeLike) -> Array:
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == np.uint16:
        return round_to_bf16(values)
    return values if kind == np.float32 else values.astype(np.float16).view(np.int16)


def check_documents_are_sequences(kind: DTypeLike, heads: HeadCounts, size: int) -> None:
    rng = np.random.default_rng(size)
    rows, channels = len(LENGTHS) * TOKENS, heads.query * size
    qkv = numbers(rng, (rows, channels + 2 * heads.key_value * size), kind)
    d_out = numbers(rng, (rows, channels), kind)
    out, lse, d_qkv = attend(qkv, d_out, len(LENGTHS), heads, starts_of(LENGTHS), np.nan)
    none = np.zeros(0, np.int32)
    for document in documents_of(LENGTHS):
        alone = attend(qkv[document].copy(), d_out[document].copy(), 1, heads, none, 0.0)
        for found, expected in zip((out[document], lse[:, document], d_qkv[document]), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("heads", [HeadCounts(2, 2), HeadCounts(4, 2)], ids=["heads", "groups"])
def test_documents_are_sequences_in_float32(heads: HeadCounts) -> None:
    check_documents_are_sequences(np.float32, heads, 7)


@pytest.mark.parametrize("path", paths_here())
@pytest.mark.parametrize(("heads", "size"), [(HeadCounts(2, 2), 48), (HeadCounts(4, 2), 32), (HeadCounts(2, 1), 5)])
def test_documents_are_sequences_in_bfloat16(path: DotPath, heads: HeadCounts, size: int) -> None:
    with on_path(path):
        check_documents_are_sequences(np.uint16, heads, size)


def test_documents_are_sequences_in_float16() -> None:
    check_documents_are_sequences(np.int16, HeadCounts(4, 2), 16)


def check_dropout(fmt: Format, heads: HeadCounts, size: int) -> None:
    """Compare each document with the reference, with its part of the masks of the sequences."""
    rng, rate, rows = np.random.default_rng(size), 0.3, len(LENGTHS) * TOKENS
    qkv = fmt.random(rng, rows, (heads.query + 2 * heads.key_value) * size)
    d_out = fmt.random(rng, rows, heads.query * size)
    layer, shape = 2, (len(LENGTHS), heads.query, TOKENS)
    masks = masks_of_dropout.attention_masks(rate, DROPOUT_KEY, layer + 1, shape)[layer]
    key = np.full(1, DROPOUT_KEY, np.uint64)
    dropout = attention_dropout(DropoutRates(attention=rate), key, layer, heads.query)
    out, lse, d_qkv = attend(qkv, d_out, len(LENGTHS), heads, starts_of(LENGTHS), 0.0, dropout)
    for document in documents_of(LENGTHS):
        b, tokens = document.start // TOKENS, slice(document.start % TOKENS, (document.stop - 1) % TOKENS + 1)
        given = fmt.numbers(d_out[document])[None], fmt.numbers(qkv[document])[None], *heads
        compute = partial(attention_tensors, *given, masks[b : b + 1, :, tokens, tokens])
        expected, bounds = with_bounds(compute, STORAGES[fmt])
        assert_close(fmt.numbers(out[document]), expected["out"], bounds["out"], "out")
        assert_close(lse[:, document], expected["lse"], bounds["lse"], "lse")
        widths = [heads.query * size, (heads.query + heads.key_value) * size]
        for part, name in zip(
            np.split(fmt.numbers(d_qkv[document]), widths, axis=1), ("d_q", "d_k", "d_v"), strict=True
        ):
            assert_close(part, expected[name], bounds[name], name)


def test_dropout_in_float32() -> None:
    check_dropout(FP32, HeadCounts(4, 2), 7)


@pytest.mark.parametrize("path", paths_here())
@pytest.mark.parametrize(("heads", "size"), [(HeadCounts(2, 2), 48), (HeadCounts(4, 2), 5)])
def test_dropout_in_bfloat16(path: DotPath, heads: HeadCounts, size: int) -> None:
    with on_path(path):
        check_dropout(BF16, heads, size)


def test_dropout_in_float16() -> None:
    check_dropout(FP16, HeadCounts(4, 2), 16)


def test_positions_begin_in_each_document() -> None:
    rng = np.random.default_rng(3)
    lengths = ((2, 5, 1), (8,), (3, 5))
    starts, none, rows = starts_of(lengths), np.zeros(0, np.int32), 24
    wte, wpe = rng.standard_normal((11, 6), np.float32), rng.standard_normal((8, 6), np.float32)
    ids, dx = rng.integers(0, 11, rows).astype(np.int32), rng.standard_normal((rows, 6), np.float32)
    out, d_wte, d_wpe = np.empty((rows, 6), np.float32), np.zeros_like(wte), np.empty_like(wpe)
    embedding_forward(wte, wpe, ids, 8, starts, out)
    embedding_backward(ids, dx, 8, starts, d_wte, d_wpe, False)
    qkv = rng.standard_normal((rows, 12), np.float32)
    cos, sin = rng.standard_normal((8, 2), np.float32), rng.standard_normal((8, 2), np.float32)
    forwards, backwards = qkv.copy(), qkv.copy()
    heads = HeadCounts(1, 1)
    rotary_forward(forwards, heads, 4, cos, sin, 3, starts)
    rotary_backward(backwards, heads, 4, cos, sin, 3, starts)
    of_wte, of_wpe = np.zeros_like(wte), np.zeros_like(wpe)
    for document in documents_of(lengths):
        one = np.empty((document.stop - document.start, 6), np.float32)
        embedding_forward(wte, wpe, ids[document], len(one), none, one)
        np.testing.assert_array_equal(out[document], one)
        np.add.at(of_wte, ids[document], dx[document])
        of_wpe[: len(one)] += dx[document]
        for rotate, found in ((rotary_forward, forwards), (rotary_backward, backwards)):
            one = qkv[document].copy()
            rotate(one, heads, 4, cos, sin, 1, none)
            np.testing.assert_array_equal(found[document], one)
    np.testing.assert_array_equal(d_wte, of_wte)
    np.testing.assert_array_equal(d_wpe, of_wpe)
