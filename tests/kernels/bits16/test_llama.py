"""The whole Llama in 16 bits: loss and every gradient against the float64 reference at the same packed weights."""

from functools import partial

import numpy as np
import pytest

from tests.error_bounds import distances, llama_activations, llama_tensors, with_bounds
from tests.kernels.bits16.formats import BF16, FORMATS, FP16, Format
from tests.kernels.bits16.llama_model import Llama16, check_llama, make_batch, random_tensors, scale_of
from tests.kernels.bits16.model import storage_of
from tests.kernels.bits16.support import on_path, paths_here
from tests.kernels.comparison import assert_close
from tests.kernels.llama_support import CASES, LlamaCase
from tests.kernels.model import check_bits_after_another_batch, check_frozen
from tests.kernels.support import run_without_compiler
from tests.reference import LlamaSizes, Rotary, Tensors, llama as reference
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.simd.features import DotPath

pytestmark = pytest.mark.timeout(600)  # most of it to compile, on a machine that was never here before

if not JIT_ENABLED:
    sizes = LlamaSizes(
        vocabulary=19, layers=2, channels=16, heads=4, kv_heads=2, head_size=6, mlp_width=11, tied=True, qkv_bias=True,
        rotary=Rotary(dimensions=4), layers_without_rotary=frozenset({1}), attn_proj_bias=True, mlp_bias=True,
        qk_norm=True,
    )  # fmt: skip
    CASES = {"odd": LlamaCase(sizes, sequences=2, tokens=5, context=6)}

EITHER = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
PATHS = paths_here()
RUNS = [(BF16, path, 7, 32) for path in PATHS] + [(BF16, PATHS[-1], 1, 5), (BF16, PATHS[-1], 400, 2000)]
RUNS += [(FP16, PATHS[-1], 7, 32)]
"""Format, path of bfloat16's GEMMs, rows of a chunk of the logits, columns of a slice of the vocabulary."""


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> LlamaCase:
    return CASES[request.param]


@pytest.mark.parametrize(
    ("fmt", "path", "logits_rows", "slice_width"), RUNS, ids=lambda value: getattr(value, "name", None)
)
def test_loss_and_every_gradient_equal_the_reference(
    case: LlamaCase, fmt: Format, path: DotPath, logits_rows: int, slice_width: int
) -> None:
    """On every path, in chunks of rows and slices of the vocabulary, between guard pages, over memory full of NaN."""
    with on_path(path):
        check_llama(case, fmt, 3, logits_rows, slice_width, at_end=logits_rows != 7)


@pytest.mark.skipif(not JIT_ENABLED, reason="the sizes are for compiled code")
@EITHER
def test_a_gradient_that_is_a_third_too_large_is_beyond_its_bound(fmt: Format) -> None:
    """The comparisons above can fail, for every tensor."""
    case = CASES["more than a tile of queries"]
    tensors, batch = make_batch(case, fmt, 3)
    model = Llama16(case, fmt, tensors)
    model.forward(batch.ids)
    model.backward(batch.ids, batch.targets, 1.33 * scale_of(fmt) / case.rows, accumulate=False)
    for name, error in model.errors(batch.gradients, scale_of(fmt)).items():
        assert error > 1.2 * batch.bounds[name], name


@EITHER
def test_every_activation_equals_the_reference(case: LlamaCase, fmt: Format) -> None:
    tensors, batch = make_batch(case, fmt, 1)
    model = Llama16(case, fmt, tensors)

    def results() -> Tensors:
        return llama_activations(reference.forward(batch.tensors, batch.ids, case.sizes))

    expected, bounds = with_bounds(results, storage_of(fmt))
    model.forward(batch.ids)
    assert_close(model.acts.x, expected["x_final"], bounds["x_final"], "x")
    for layer in range(case.sizes.layers):
        for name in ("qkv", "attn", "lse", "gate_up", "normed1", "normed2", "rstd1", "rstd2"):
            key = f"{name} of layer {layer}"
            found = getattr(model.acts, "attn_lse" if name == "lse" else name)[layer]
            floats = found if found.dtype == np.float32 else fmt.numbers(found)
            assert_close(floats, expected[key], bounds[key], key)


@EITHER
def test_two_micro_batches_accumulated_are_the_sum_of_both(case: LlamaCase, fmt: Format) -> None:
    """To float32's rounding the sum of the gradients of each alone."""
    batches = [make_batch(case, fmt, seed)[1] for seed in (2, 4)]
    tensors, scale = make_batch(case, fmt, 2)[0], scale_of(fmt) / case.rows
    model = Llama16(case, fmt, tensors)

    def gradients(accumulate: bool) -> list[Tensors]:
        found = []
        for number, batch in enumerate(batches):
            model.forward(batch.ids)
            model.backward(batch.ids, batch.targets, scale, accumulate=accumulate and number > 0)
            found.append({name: getattr(model.grads, name).astype(np.float64) for name in tensors})
        return found

    alone, together = gradients(accumulate=False), gradients(accumulate=True)[-1]
    # Both have the same 16-bit operands, and float32 sums in two orders. The bounds have the errors of these sums and,
    # in addition, those of a float32 forward and backward pass, which are not made here.
    bounds = [
        distances(partial(llama_tensors, batches[0].tensors, batch.ids, batch.targets, case.sizes, scale))
        for batch in batches
    ]
    for name, found in together.items():
        assert np.linalg.norm(found - (alone[0][name] + alone[1][name])) <= 2.0 * (bounds[0][name] + bounds[1][name]), (
            name
        )


@EITHER
def test_the_same_call_gives_the_same_bits(case: LlamaCase, fmt: Format) -> None:
    """The result does not depend on the contents of activations, scratch and gradients before the call."""
    rng = np.random.default_rng(5)
    tensors = random_tensors(case, rng)
    check_bits_after_another_batch(Llama16(case, fmt, tensors), Llama16(case, fmt, tensors, at_end=False), rng)


@pytest.mark.parametrize(("fmt", "path"), [*((BF16, path) for path in PATHS), (FP16, PATHS[-1])])
def test_less_memory_gives_the_same_bits(case: LlamaCase, fmt: Format, path: DotPath) -> None:
    """Without the packed transposes, and with one layer's gate and up."""
    rng = np.random.default_rng(8)
    tensors = random_tensors(case, rng)
    with on_path(path):
        check_bits_after_another_batch(
            Llama16(case, fmt, tensors), Llama16(case, fmt, tensors, at_end=False, small=True), rng
        )


@pytest.mark.skipif(not JIT_ENABLED, reason="minutes without the compiler; the float32 test runs there")
@EITHER
def test_gradients_of_frozen_tensors_are_not_computed(case: LlamaCase, fmt: Format) -> None:
    rng = np.random.default_rng(6)
    tensors = random_tensors(case, rng)
    check_frozen(lambda frozen: Llama16(case, fmt, tensors, frozen=frozen), set(tensors), rng)


@pytest.mark.skipif(not JIT_ENABLED, reason="this is that run")
def test_the_model_without_the_compiler() -> None:
    run_without_compiler(
        "from tests.kernels.bits16.formats import FORMATS\n"
        "from tests.kernels.bits16.llama_model import check_llama\n"
        "from tests.kernels.llama_support import LlamaCase\n"
        "from tests.reference import LlamaSizes, Rotary\n"
        "sizes = LlamaSizes(vocabulary=19, layers=2, channels=16, heads=4, kv_heads=2, head_size=6, mlp_width=5,\n"
        "    rotary=Rotary(dimensions=2), layers_without_rotary=frozenset({1}), qkv_bias=True, qk_norm=True)\n"
        "for fmt in FORMATS:\n"
        "    check_llama(LlamaCase(sizes, sequences=2, tokens=3, context=4), fmt, logits_rows=4, slice_width=7)\n"
    )
