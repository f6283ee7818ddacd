"""Bounds on rounding errors, derived and not measured. Every numeric tolerance of the tests comes from here.

**One operation.** A float32 operation returns its exact result times 1 + d, |d| <= u = 2**-24 (`FLOAT32`), if the
result is normal; a subnormal one is flushed to zero at worst, an absolute error of 2**-126. A fused multiply-add rounds
once. A sum of n terms in any order has the error (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1)::

    |computed - exact| <= gamma(n - 1) * sum |term|,    gamma(m) = m u / (1 - m u)

That is the worst case, and `product_error` and the tests of single operations use it.

**Many operations.** Through a whole model the worst case is useless: it grows exponentially with the depth. The bound
for models is probabilistic. To first order the error of a result is a sum over all roundings, each times the derivative
of the result with respect to the rounded number. Assume that the roundings are independent and uniform between plus and
minus half a unit in the last place (Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J.
Sci. Comput. 41(5), 2019). A uniform number is strictly sub-Gaussian, so with the covariance matrix S of the error, a
vector (Hsu, Kakade and Zhang, A tail inequality for quadratic forms of subgaussian random vectors, Electron. Commun.
Probab. 17, 2012)::

    P(|error|**2 > tr(S) + 2 sqrt(t tr(S**2)) + 2 t |S|) <= exp(-t),    |S| <= sqrt(tr(S**2))

With t = 18 (`EXPONENT`) that is a probability of 2e-8 for each comparison. Both traces are computed: the reference runs
in float64 with a random rounding error in every marked result, and some runs give samples of the error (`Disturbance`,
`distances`). The mean square of their norms estimates tr(S), and the mean square of the inner products of two of them
tr(S**2), both without bias. A single number may be off by 6.75 times its standard deviation, a tensor whose error has
many independent directions by little more than the root of tr(S).

The roundings of a sum are taken together (`tests.rounding_marks.summed`). The random number is a hash of the rounded
number's bits, so that equal numbers are rounded equally, wherever they occur. Of a number that is stored in a narrow
format, it is a hash of the two numbers of the format that it is between, plus its place between them: nearly equal
numbers have nearly equal errors, as in the gradients of the targets' logits, which are all about -1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests import reference
from tests.reference import Ids, LlamaSizes, LoraSizes, Record, Tensors, llama
from tests.reference.llama import LlamaRecord
from tests.rounding_marks import Array, arithmetic, rounded_sum, stored

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
"""Unit roundoffs: the largest relative error of one operation, rounded to nearest."""
SMALLEST = 2.0**-126
"""Smallest normal float32: the largest absolute error of an operation whose result is subnormal and flushed to zero."""
EXPONENT = 18.0
"""Negative logarithm of the probability with which a correct result exceeds its bound."""
RUNS, MANY_NUMBERS, FEW_RUNS = 8, 50_000, 6
"""Disturbed runs from which the traces are computed; fewer if the results have so many numbers that few suffice."""


Bits = NDArray[np.uint64]


class Storage(NamedTuple):
    """Format in which activations and compute copies of matrices are stored."""

    unit: float  # largest relative error of one rounding
    tiny: float  # largest absolute error below the normal numbers
    products: float = FLOAT32  # relative error of one product within a matrix multiply


IN_FLOAT32 = Storage(0.0, 0.0)  # what is computed in float32 is stored as it is
IN_BF16 = Storage(2.0**-8, 2.0**-126)  # 8 bits of precision; the dot-product instructions flush subnormal numbers
IN_BF16X3 = Storage(0.0, 0.0, 2.0**-16)
"""Matrix multiplies of operands that are split into two bfloat16 numbers; all else in float32.

The rest of an operand is uniform within 2**-17 of it, and the omitted product of the low terms is one of two uniform
numbers within 2**-8. Together they have the variance 2 * 2**-34 / 3 + 2**-32 / 9, less than (2**-16)**2 / 3.
"""
IN_FP16 = Storage(2.0**-11, 2.0**-25)  # 11 bits; subnormal numbers are multiples of 2**-24


def gamma(roundings: int, unit: float = FLOAT32) -> float:
    """Return the bound on the relative error of a product of `roundings` factors 1 + d, each d at most `unit`."""
    return roundings * unit / (1.0 - roundings * unit)


def product_error(a: Array, b: Array, *added: Array, alpha: float = 1.0, splits: int = 1) -> Array:
    """Return a bound on the error of each element of ``alpha * a @ b + sum(added)`` in float32, in any summation order.

    An element is a sum of n terms: k products, where k is the number of columns of `a`, and one term of each array in
    `added`. In any order of summation a term passes through at most n - 1 additions. Its product is rounded at most
    once before them, and alpha adds at most one rounding, whether it scales an operand, a product or a partial sum; of
    ``beta * out``, which the caller passes in `added`, only the scaling is rounded. A fused multiply-add rounds less
    often, and adding the zero of an accumulator or of padding is exact. So each term carries at most n + 1 factors
    (1 + d)::

        |computed - exact| <= gamma(n + 1) * (|alpha| |a| |b| + sum(|added|))

    if nothing underflows or overflows. The tests compute the exact value and this bound in float64, whose own error is
    some 2**-29 of the bound. An algorithm that sums `splits` products in place of each one has ``splits * k`` of them.
    """
    sizes: Array = np.abs(alpha) * (np.abs(a) @ np.abs(b))
    for term in added:
        sizes = sizes + np.abs(term)
    return gamma(splits * a.shape[1] + len(added) + 1) * sizes


@dataclass(frozen=True)
class Disturbance:
    """Marked results of the reference with random rounding errors: see the module."""

    seed: int
    storage: Storage = IN_FLOAT32

    @property
    def product_units(self) -> float:
        """Return the error of one product within a matrix multiply, in units of one rounding."""
        return self.storage.products / FLOAT32

    def computed(self, value: Array, units: Array) -> Array:
        """Return a result of arithmetic with its error."""
        error = _uniform(self._hashed(_bits(value), 1)).reshape(value.shape)
        return np.asarray(value + error * (FLOAT32 * units + SMALLEST))

    def stored(self, value: Array) -> Array:
        """Return an activation with the error of its storage, within half a unit in its last place."""
        if not self.storage.unit:
            return value
        bits = _bits(value)
        fraction = np.uint64(12 - math.frexp(self.storage.unit)[1])  # bits before it: sign, exponent, stored mantissa
        offsets = self._hashed(bits >> (np.uint64(64) - fraction), 2)
        error = _uniform((bits << fraction) + offsets).reshape(value.shape)
        power_of_two = (bits & np.uint64(0x7FF << 52)).view(np.float64).reshape(value.shape)
        return np.asarray(value + error * np.maximum(self.storage.unit * power_of_two, self.storage.tiny))

    def _hashed(self, bits: Bits, purpose: int) -> Bits:
        """Return a hash of each number: a multiplication spreads bits upwards, the shift moves them down again."""
        bits = bits ^ np.uint64(0x9E3779B97F4A7C15 * (2 * self.seed + purpose) % 2**64)
        bits *= np.uint64(0xFF51AFD7ED558CCD)
        bits ^= bits >> np.uint64(32)
        bits *= np.uint64(0xC4CEB9FE1A85EC53)
        return bits


def _bits(value: Array) -> Bits:
    return np.ascontiguousarray(value, np.float64).reshape(-1).view(np.uint64)


def _uniform(bits: Bits) -> Array:
    """Return random bits as numbers in -1 .. 1."""
    return np.asarray(bits.view(np.int64) * 2.0**-63)


def tail(errors: Array) -> float:
    """Return the bound on the norm of an error, from samples of it, (runs, numbers)."""
    runs = len(errors)
    products = errors @ errors.T
    trace = float(np.mean(np.diag(products)))
    of_square = float(np.sum(np.square(products[np.triu_indices(runs, 1)]))) / (runs * (runs - 1) / 2)
    return _bound(trace, trace if errors.shape[1] == 1 else math.sqrt(of_square))


def tail_of_sum(errors: Array) -> float:
    """Return the bound on the sum of the numbers of an error, from samples of it, (runs, numbers).

    A few runs give the mean square of one number badly. If the errors are independent, that of their sum has the same
    mean square as their norm, for which there are more numbers; if they are not, it is larger.
    """
    independent = float(np.mean(np.sum(np.square(errors), axis=1)))
    return max(tail(errors.sum(axis=1, keepdims=True)), _bound(independent, independent))


def _bound(trace: float, of_square: float) -> float:
    """Return the bound from tr(S) and the root of tr(S**2), which is equal to tr(S) for one number and no larger."""
    return math.sqrt(trace + 2.0 * (math.sqrt(EXPONENT) + EXPONENT) * min(of_square, trace))


def distances(compute: Callable[[], Tensors], storage: Storage = IN_FLOAT32) -> dict[str, float]:
    """Return, by name, the distance that a correct implementation of `compute` keeps from the result, as an L2 norm.

    `compute` returns tensors from functions of the reference, whose marked results are disturbed.
    """
    return {name: tail(samples) for name, samples in _samples(compute, storage)[1].items()}


def allowed(compute: Callable[[], Tensors], storage: Storage = IN_FLOAT32) -> dict[str, float]:
    """Return the same relative to the norm of each tensor; absolute for a tensor of zeros."""
    return with_bounds(compute, storage)[1]


def with_bounds(compute: Callable[[], Tensors], storage: Storage = IN_FLOAT32) -> tuple[Tensors, dict[str, float]]:
    """Return the exact results of `compute`, and the relative distances that are allowed to them."""
    exact, errors = _samples(compute, storage)
    return exact, {name: tail(errors[name]) / _size(tensor) for name, tensor in exact.items()}


def _size(tensor: Array) -> float:
    return float(np.linalg.norm(tensor)) or 1.0


def _samples(compute: Callable[[], Tensors], storage: Storage) -> tuple[Tensors, Tensors]:
    """Return the exact results of `compute`, and samples of the error of each, (runs, numbers)."""
    exact = compute()
    runs = RUNS if sum(tensor.size for tensor in exact.values()) < MANY_NUMBERS else FEW_RUNS
    errors: dict[str, list[Array]] = {name: [] for name in exact}
    for seed in range(runs):
        with arithmetic(Disturbance(seed, storage)):
            for name, tensor in compute().items():
                errors[name].append((tensor - exact[name]).ravel())
    return exact, {name: np.stack(samples) for name, samples in errors.items()}


EXPONENTIAL = gamma(3) + gamma(4)
"""Relative error of `exp32`: e**x = 2**n (1 + r + r**2 p(r)), |r| <= ln(2) / 2 = 0.35.

The argument: y log2(e) only chooses n. n LN2_HIGH is exact, and y - n LN2_HIGH is off by u |r| at most; n LN2_LOW is at
most 128 * 2.2e-4 = 0.03, and its product and difference are off by 0.38 u; ln 2 itself by 128 * 2**-36. So r is
off by less than u, and so is e**r relatively. Coefficients and truncation (Cephes): 0.3 u. The evaluation: the last
two additions are off by u each of at most e**r, r**2 p(r) (at most 0.07) by gamma(8) times that, 0.6 u. Together 4 u.
With a fused or an unfused multiply-add the bound is the same; gamma(7) leaves 3 u for an argument at the range's ends.
"""
SIGMOID = EXPONENTIAL + gamma(2)
"""Relative error of `sigmoid32`, 1 / (1 + e**-x): of e**-x at most its own, of the sum and of the division u each."""


def model_tensors(
    weights: Tensors, ids: Ids, targets: Ids, heads: int, scale: float, lora: LoraSizes | None = None
) -> Tensors:
    """Return the results of a GPT-2.

    They are the gradients; "gradient", all of them as one vector, whose error is no less than that of its norm; "loss";
    "losses" of the tokens; "x_final"; "d_x_final"; and the activations.
    """
    record = reference.forward(weights, ids, heads, lora)
    loss = reference.cross_entropy_forward(record.logits, targets)
    return _results(loss, *reference.backward(weights, record, targets, scale)) | activations(record)


def llama_tensors(weights: Tensors, ids: Ids, targets: Ids, sizes: LlamaSizes, scale: float) -> Tensors:
    """Return the results of a Llama, as `model_tensors`."""
    record = llama.forward(weights, ids, sizes)
    loss = reference.cross_entropy_forward(record.logits, targets)
    return _results(loss, *llama.backward(weights, record, targets, scale)) | llama_activations(record)


def _results(loss: Array, grads: Tensors, d_x_final: Array) -> Tensors:
    gradient = np.concatenate([tensor.ravel() for tensor in grads.values()])
    return {**grads, "gradient": gradient, "loss": rounded_sum(loss), "losses": loss, "d_x_final": d_x_final}


def model_bounds(
    weights: Tensors,
    ids: Ids,
    targets: Ids,
    heads: int,
    scale: float,
    storage: Storage = IN_FLOAT32,
    lora: LoraSizes | None = None,
) -> dict[str, float]:
    """Return the relative distances that are allowed to the results of `model_tensors`, and to "loss", their sum."""
    return _bounds_of_results(lambda: model_tensors(weights, ids, targets, heads, scale, lora), storage)


def llama_bounds(
    weights: Tensors, ids: Ids, targets: Ids, sizes: LlamaSizes, scale: float, storage: Storage = IN_FLOAT32
) -> dict[str, float]:
    """Return the relative distances that are allowed to the results of `llama_tensors`."""
    return _bounds_of_results(lambda: llama_tensors(weights, ids, targets, sizes, scale), storage)


def _bounds_of_results(compute: Callable[[], Tensors], storage: Storage) -> dict[str, float]:
    exact, errors = _samples(compute, storage)
    bounds = {name: tail(errors[name]) / _size(tensor) for name, tensor in exact.items()}
    loss = float(exact["losses"].sum())
    return bounds | {"loss": tail_of_sum(errors["losses"]) / loss + FLOAT32}


def mean_loss(weights: Tensors, ids: Ids, targets: Ids, heads: int) -> tuple[float, float]:
    """Return the loss of the average token of a GPT-2, and how far that of a correct float32 model may be from it."""
    return mean_and_bound(lambda: reference.losses(weights, ids, targets, heads))


def mean_and_bound(compute: Callable[[], Array]) -> tuple[float, float]:
    """Return the mean of the numbers of `compute`, and how far that of a correct float32 implementation may be from it.

    The mean of n errors is at most their norm divided by the root of n.
    """
    exact, bounds = with_bounds(lambda: {"numbers": compute()})
    numbers = exact["numbers"]
    mean = float(numbers.mean())
    return mean, bounds["numbers"] * float(np.linalg.norm(numbers)) / math.sqrt(numbers.size) + FLOAT32 * abs(mean)


def activations(record: Record) -> Tensors:
    """Return the activations of a forward pass: "x_final", "logits", and "qkv of layer 0" and so on."""
    named: Tensors = {"x_final": record.x_final, "logits": record.logits}
    for layer, block in enumerate(record.blocks):
        kept = {name: getattr(block, name) for name in ("x", "qkv", "attn", "lse", "x_mid", "fc")}
        for norm, x in (("1", block.x), ("2", block.x_mid)):
            kept[f"mean{norm}"], kept[f"rstd{norm}"] = reference.layernorm_statistics(x)
            kept[f"normed{norm}"] = reference.normalised(x)[0]
        named |= {f"{name} of layer {layer}": tensor for name, tensor in kept.items()}
    return named


def llama_activations(record: LlamaRecord) -> Tensors:
    """Return the activations of a forward pass, under names as those of `activations`."""
    named: Tensors = {"x_final": record.x_final, "logits": record.logits}
    for layer, block in enumerate(record.blocks):
        kept = {name: getattr(block, name) for name in ("x", "raw", "qkv", "attn", "lse", "x_mid", "gate_up")}
        for norm, x in (("1", block.x), ("2", block.x_mid)):
            kept[f"rstd{norm}"] = reference.rms_statistic(x, record.sizes.epsilon)
            kept[f"normed{norm}"] = stored(reference.rms_normalised(x, record.sizes.epsilon)[0])
        named |= {f"{name} of layer {layer}": tensor for name, tensor in kept.items()}
    return named


def attention_tensors(
    d_out: Array, qkv: Array, heads: int, kv_heads: int | None = None, mask: Array | None = None
) -> Tensors:
    """Return the results of attention: "out", "lse", "d_q", "d_k" and "d_v"."""
    out, lse = reference.attention_forward(qkv, heads, kv_heads, mask)
    gradient = stored(reference.attention_backward(d_out, qkv, heads, kv_heads, mask))
    q_width = d_out.shape[-1]
    kv_width = (qkv.shape[-1] - q_width) // 2
    parts = np.split(gradient, [q_width, q_width + kv_width], axis=-1)
    return {"out": stored(out), "lse": lse} | dict(zip(("d_q", "d_k", "d_v"), parts, strict=True))
