"""Threads that divide the layers of a prompt: equal bits, and which prompts they divide."""

import numpy as np
import pytest

from tests.stages.inference.test_member_threads import members_left, weights_of
from tests.stages.support import LLAMA, tiny
from threadloom.kernels import GemmBackend, blas_info
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.inference import DecodePrecision
from threadloom.stages.inference.decoder import Decoder
from threadloom.stages.inference.layer_threads import ROWS_PER_THREAD
from threadloom.stages.inference.member_threads import MemberThreads, Work

pytestmark = [
    pytest.mark.timeout(300),  # includes compiling with an empty cache
    pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently"),
]

SIZES = ("model.channels=75", "model.vocab_size=61", "model.context=111", "model.layers=2")
GPT2 = tiny(*SIZES)
GROUPED = tiny(*SIZES, "model.mlp_width=133", "model.tied=true", "model.qk_norm=false", "model.kv_heads=3", base=LLAMA)
NORMED = tiny(*SIZES, "model.mlp_width=133", "model.qk_norm=true", base=LLAMA)


@pytest.fixture
def handed_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of the numbers of members of all work, as it grows."""
    numbers: list[int] = []
    run = MemberThreads.run

    def recorded(self: MemberThreads, work: Work, members: int) -> None:
        numbers.append(members)
        run(self, work, members)

    monkeypatch.setattr(MemberThreads, "run", recorded)
    return numbers


def outcome(config: ResolvedConfig, precision: DecodePrecision, rows: int, threads: int) -> bytes:
    """Return the logits after a prompt of `rows` tokens, and those after a further one, which depend on the cache."""
    weights, geometry = weights_of(config, precision)
    ids = np.random.default_rng(1).integers(0, geometry.vocabulary, rows).tolist()
    decoder = Decoder(weights, geometry, threads)
    first = decoder.prefill(ids).tobytes()
    result = first + decoder.append(7).tobytes()
    decoder.close()
    return result


@pytest.mark.skipif(blas_info(load=False).backend is not GemmBackend.NUMBA, reason="a library's products")
@pytest.mark.parametrize("precision", [DecodePrecision.FLOAT32, DecodePrecision.BF16, DecodePrecision.INT8])
@pytest.mark.parametrize("config", [GPT2, GROUPED], ids=["gpt2", "grouped llama"])
def test_a_prompt_has_the_bits_of_one_thread(
    config: ResolvedConfig, precision: DecodePrecision, handed_out: list[int]
) -> None:
    results = {outcome(config, precision, 103, threads) for threads in (1, 2, 3)}
    assert len(results) == 1
    assert {2, 3} <= set(handed_out)
    assert members_left() == []


def test_norms_of_heads_and_short_prompts_are_left_to_one_thread(handed_out: list[int]) -> None:
    alone, together = (outcome(NORMED, DecodePrecision.FLOAT32, 103, threads) for threads in (1, 3))
    assert alone == together
    outcome(GPT2, DecodePrecision.FLOAT32, 3 * ROWS_PER_THREAD - 1, 3)
    assert set(handed_out) == {1}
