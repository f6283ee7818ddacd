"""The exact softmax over a vocabulary whose logits are sums of residues, without the logits (`common.residues`).

A token's logit is ``z = scale * sum_k u_k[n % m_k]``, so its exponential is a product of one factor for each modulus,
``e_k = exp(scale * u_k - largest)``, and the exponentials of P numbers are enough. The gradient needs, for each residue
j of each modulus k, the sum of the exponentials of all tokens with that residue:

    S_k[j] = e_k[j] * sum over tokens n with n % m_k = j of the product of the e_l[n % m_l] with l != k

For k the tokens are passed over in steps of a multiple of m_k, so that the sums stay in place. The e_l repeat with
period m_l; each table holds its period and `reach` elements more, so that a step reads it without a break.

The product of the largest factors may belong to no token, and those of all tokens may vanish beside it. Then (the sum
is below `_TINY`) the logits are added up and compared with the largest that a token has.
"""

import math

import numpy as np

from threadloom.kernels.common.cross_entropy import IGNORED_TARGET, has_terms
from threadloom.kernels.common.residues import Residues
from threadloom.kernels.common.tensors import LossTerms
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel, jit_strict_inline
from threadloom.kernels.simd import exp32, row_max

_TINY = np.float32(1e-20)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LOWEST = np.float32(-np.inf)


@jit_kernel
def _add(values: Floats, sums: Floats) -> None:
    for i in range(sums.shape[0]):
        sums[i] += values[i]


@jit_kernel
def _set(row: Floats, value: np.float32) -> None:
    for i in range(row.shape[0]):
        row[i] = value


@jit_kernel
def _multiply(values: Floats, products: Floats) -> None:
    for i in range(products.shape[0]):
        products[i] *= values[i]


@jit_kernel
def _exponentiate(row: Floats, largest: np.float32) -> None:
    for i in range(row.shape[0]):
        row[i] = exp32(row[i] - largest)


@jit_inline_body
def _table(space: Floats, residues: Residues, k: int) -> Floats:
    """Return the table of a modulus: its residues, repeated."""
    start = residues.first[k] - residues.own + k * residues.reach
    return space[start : start + residues.moduli[k] + residues.reach]


@jit_inline_body
def _buffer(space: Floats, residues: Residues, index: int) -> Floats:
    """Return one of the two arrays of `reach` elements at the end of `space`."""
    end = space.shape[0] - index * residues.reach
    return space[end - residues.reach : end]


@jit_kernel
def _repeat(table: Floats, modulus: int) -> None:
    for i in range(modulus, table.shape[0]):
        table[i] = table[i - modulus]


@jit_kernel
def _fill_tables(logits: Floats, residues: Residues, space: Floats) -> None:
    """Write ``scale * u_k`` to the tables."""
    for k in range(residues.moduli.shape[0]):
        table, u = _table(space, residues, k), logits[residues.first[k] :]
        for j in range(residues.moduli[k]):
            table[j] = residues.scale * u[j]
        _repeat(table, residues.moduli[k])


@jit_kernel
def _sum_of_largest(residues: Residues, space: Floats) -> np.float32:
    total = _ZERO
    for k in range(residues.moduli.shape[0]):
        total += row_max(_table(space, residues, k), residues.moduli[k])
    return total


@jit_kernel
def _exponentiate_tables(residues: Residues, space: Floats, largest: np.float32) -> None:
    """Replace the tables by factors whose products are ``exp(z - largest)``, none of them above 1."""
    rest = largest
    for k in range(residues.moduli.shape[0] - 1, -1, -1):
        table = _table(space, residues, k)
        own = row_max(table, residues.moduli[k]) if k else rest
        rest -= own
        _exponentiate(table[: residues.moduli[k]], own)
        _repeat(table, residues.moduli[k])


@jit_kernel
def _sum_products(residues: Residues, k: int, space: Floats) -> Floats:
    """Return, for each residue of modulus `k`, the sum over tokens of the products of the other factors."""
    moduli, count, period = residues.moduli, residues.moduli.shape[0], residues.period[k]
    sums, products = _buffer(space, residues, 0), _buffer(space, residues, 1)
    _set(sums, _ZERO)
    for n in range(0, residues.tokens, period):
        size = min(residues.reach, residues.tokens - n)  # past the period: sums that nobody reads
        if count == 2:
            start = n % moduli[1 - k]
            _add(_table(space, residues, 1 - k)[start : start + size], sums[:size])
            continue
        _set(products[:size], _ONE)
        for other in range(count):
            if other != k:
                start = n % moduli[other]
                _multiply(_table(space, residues, other)[start : start + size], products[:size])
        _add(products[:size], sums[:size])
    return _folded(sums, period, moduli[k])


@jit_kernel
def _folded(sums: Floats, period: int, modulus: int) -> Floats:
    """Add up the parts of a period, as long as the modulus."""
    for first in range(modulus, period, modulus):
        _add(sums[first : first + modulus], sums[:modulus])
    return sums[:modulus]


@jit_kernel
def _logits_of_step(residues: Residues, n: int, space: Floats, size: int) -> Floats:
    """Return `size` logits of the tokens from `n` on, from tables of ``scale * u_k``."""
    logits = _buffer(space, residues, 1)[:size]
    _set(logits, _ZERO)
    for k in range(residues.moduli.shape[0]):
        start = n % residues.moduli[k]
        _add(_table(space, residues, k)[start : start + size], logits)
    return logits


@jit_kernel
def _largest_logit(residues: Residues, space: Floats) -> np.float32:
    """Return the largest logit that a token has."""
    largest = _LOWEST
    for n in range(0, residues.tokens, residues.reach):
        logits = _logits_of_step(residues, n, space, min(residues.reach, residues.tokens - n))
        largest = max(largest, row_max(logits, logits.shape[0]))
    return largest


@jit_kernel
def _sum_exponentials(residues: Residues, k: int, largest: np.float32, space: Floats) -> Floats:
    """Return, for each residue of modulus `k`, the sum over tokens of ``exp(z - largest)``."""
    sums = _buffer(space, residues, 0)
    _set(sums, _ZERO)
    period = residues.period[k]
    for n in range(0, residues.tokens, period):
        logits = _logits_of_step(residues, n, space, min(period, residues.tokens - n))
        _exponentiate(logits, largest)
        _add(logits, sums[: logits.shape[0]])
    return _folded(sums, period, residues.moduli[k])


@jit_kernel
def _total(row: Floats) -> np.float32:
    total = _ZERO
    for i in range(row.shape[0]):
        total += row[i]
    return total


@jit_kernel
def _target_logit(logits: Floats, residues: Residues, target: int) -> np.float32:
    if target < residues.own:
        return logits[target]
    total = _ZERO
    for k in range(residues.moduli.shape[0]):
        total += residues.scale * logits[residues.first[k] + (target - residues.own) % residues.moduli[k]]
    return total


@jit_kernel
def residue_softmax(logits: Floats, target: int, residues: Residues, space: Floats) -> tuple[np.float32, np.float64]:
    """Replace `logits` (P,) by sums of exponentials; return the sum of all tokens', and the loss of the target.

    Column j gets the sum of ``exp(z - a constant)`` over the tokens that column j is added to: one token for the first
    `own` columns. `space` is scratch of ``residues.space`` elements.
    """
    own = residues.own
    at_target = _target_logit(logits, residues, target)
    of_own = row_max(logits, own) if own else _LOWEST
    _fill_tables(logits, residues, space)
    bound = _sum_of_largest(residues, space)
    largest = max(bound, of_own)
    _exponentiate_tables(residues, space, largest)
    first = residues.first[0]
    sums = _sum_products(residues, 0, space)
    _multiply(_table(space, residues, 0), sums)
    total = _total(sums)
    if total < _TINY and of_own < bound:
        _fill_tables(logits, residues, space)
        largest = max(_largest_logit(residues, space), of_own)
        total = _ZERO
        for k in range(residues.moduli.shape[0]):
            sums = _sum_exponentials(residues, k, largest, space)
            if k == 0:
                total = _total(sums)
            logits[residues.first[k] : residues.first[k] + residues.moduli[k]] = sums
    else:
        logits[first : first + residues.moduli[0]] = sums
        for k in range(1, residues.moduli.shape[0]):
            sums = _sum_products(residues, k, space)
            _multiply(_table(space, residues, k), sums)
            logits[residues.first[k] : residues.first[k] + residues.moduli[k]] = sums
    _exponentiate(logits[:own], largest)
    total += _total(logits[:own])
    loss = np.float64(largest) - np.float64(at_target) + math.log(total)
    return total, loss


@jit_kernel
def residue_losses(logits: Floats, targets: TokenIds, residues: Residues, space: Floats) -> float:
    """Return the sum of the losses of rows of columns, `logits` (n, P), which are overwritten.

    `targets` (n,) are in 0 .. V - 1, or `IGNORED_TARGET`. `space` is scratch of ``residues.space`` elements.
    """
    losses = 0.0
    for r in range(targets.shape[0]):
        if targets[r] != IGNORED_TARGET:
            _, loss = residue_softmax(logits[r], targets[r], residues, space)
            losses += loss
    return losses


@jit_strict_inline
def _tokens_with(residues: Residues, k: int, residue: int) -> int:
    """Return how many tokens have a residue of a modulus."""
    whole, rest = residues.tokens // residues.moduli[k], residues.tokens % residues.moduli[k]
    return whole + (1 if residue < rest else 0)


@jit_kernel
def _mean_logit(logits: Floats, residues: Residues) -> float:
    """Return the mean logit of all tokens."""
    total = np.float64(_total(logits[: residues.own]))
    for k in range(residues.moduli.shape[0]):
        for j in range(residues.moduli[k]):
            total += _tokens_with(residues, k, j) * np.float64(residues.scale * logits[residues.first[k] + j])
    return total / (residues.own + residues.tokens)


@jit_kernel
def residue_cross_entropy(
    logits: Floats, targets: TokenIds, scale: float, terms: LossTerms, residues: Residues, space: Floats
) -> float:
    """Overwrite `logits` (n, P) with the gradients of the loss with its `terms`; return the sum of the cross-entropies.

    The gradient of a column is the sum over its tokens, times the scale of the residues and `scale`. The sums of the
    terms are added to ``terms.sums``. `targets` and `space` are as in `residue_losses`; rows that do not count get 0.
    """
    own, width = residues.own, residues.own + residues.tokens
    uniform = np.float32(scale * terms.label_smoothing / width)
    at_target = np.float32(scale * (1.0 - terms.label_smoothing))
    losses = 0.0
    for r in range(targets.shape[0]):
        row, target = logits[r], targets[r]
        if target == IGNORED_TARGET:
            _set(row, _ZERO)
            continue
        logit = np.float64(_target_logit(row, residues, target))
        if terms.label_smoothing > 0.0:
            terms.sums[0] += terms.label_smoothing * (logit - _mean_logit(row, residues))
        total, loss = residue_softmax(row, target, residues, space)
        losses += loss
        log_z = loss + logit
        if has_terms(terms):
            terms.sums[1] += terms.z_loss * log_z * log_z
        share = np.float32(scale * (1.0 + 2.0 * terms.z_loss * log_z)) / total
        for j in range(own):
            row[j] = row[j] * share - uniform
        for k in range(residues.moduli.shape[0]):
            columns = row[residues.first[k] : residues.first[k] + residues.moduli[k]]
            for j in range(columns.shape[0]):
                columns[j] = residues.scale * (columns[j] * share - uniform * np.float32(_tokens_with(residues, k, j)))
            if target >= own:
                columns[(target - own) % residues.moduli[k]] -= at_target * residues.scale
        if target < own:
            row[target] -= at_target
    return losses
