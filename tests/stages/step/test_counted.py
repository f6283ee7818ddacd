"""Targets that do not count: means over the others, however an update is divided into micro-batches."""

from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import IN_BF16, IN_FLOAT32
from tests.kernels.bits16.formats import BF16
from tests.stages.support import LLAMA, TINY, assert_same, build, result, run_sequence, run_threads, tiny
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation, sequences, start_of
from threadloom.kernels.common import IGNORED_TARGET as IGNORED_BY_KERNELS
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.stages.config import Config, ConfigError, ResolvedConfig
from threadloom.stages.data import DataError, TokenBatches, evaluation_batches
from threadloom.stages.data.token_file import IGNORED_TARGET, TokenFile
from threadloom.stages.memory import Update
from threadloom.stages.resolve import trajectory
from threadloom.stages.step import ValidationLoss
from threadloom.stages.training import Training


def masked(config: ResolvedConfig, counted: np.ndarray) -> TokenFile:
    """Return a file of random tokens, of which some count."""
    geometry = config.model.geometry()
    ids = np.random.default_rng(3).integers(0, geometry.vocabulary, len(counted)).astype(np.uint16)
    return TokenFile(ids, geometry.vocabulary, geometry.context, Path("masked"), counted=counted.astype(np.uint8))


def runs_of_masks(config: ResolvedConfig) -> TokenFile:
    """Return a file with long stretches that do not count: micro-batches have from none to all of their targets."""
    pattern = np.random.default_rng(4).integers(0, 2, 20)
    return masked(config, np.repeat(pattern, 2 * config.model.context))


def training_on(config: ResolvedConfig, tokens: TokenFile) -> Training:
    return build(config, data=TokenBatches(tokens, config.batch_sizes, config.seed))


def test_the_data_have_the_kernels_constant() -> None:
    """They do not import it, which would load Numba."""
    assert IGNORED_TARGET == IGNORED_BY_KERNELS


def test_counted_is_the_number_of_targets_that_are_not_ignored() -> None:
    config = tiny("gradient_accumulation_steps=2")
    tokens, rows = runs_of_masks(config), config.micro_batch * config.model.context
    source, found = TokenBatches(tokens, config.batch_sizes, 5), []
    ids, targets = np.empty((2, rows), np.int32)
    for batch in range(3):
        for micro in range(config.batch_sizes.micro_batches):
            source.fill(batch, micro, ids, targets)
            found.append(int(np.count_nonzero(targets != IGNORED_TARGET)))
        assert source.counted(batch) == sum(found[-config.batch_sizes.micro_batches :])
    assert {0, rows} <= set(found)
    assert len(set(found)) > 2


TERMS = "loss.label_smoothing=0.1", "loss.z_loss=1e-2"
CASES = [
    (TINY, ("delay=1",)),
    (TINY, ("gradient_accumulation_steps=2", "precision=bf16", *TERMS)),
    (LLAMA, ("lanes=1", *TERMS)),
]


@pytest.mark.timeout(600)  # most of it to compile with an empty cache
@pytest.mark.parametrize(("base", "overrides"), CASES, ids=("float32", "bf16", "llama"))
def test_training_equals_the_reference_of_one_whole_batch(base: Config, overrides: tuple[str, ...]) -> None:
    if "precision=bf16" in overrides and not JIT_ENABLED:
        pytest.skip("training in 16 bits needs the compiler")
    config = tiny("steps=2", *SMALL_STEPS, *overrides, base=base)
    training = training_on(config, runs_of_masks(config))
    storage, packed = (IN_BF16, BF16) if "precision=bf16" in overrides else (IN_FLOAT32, None)
    expected = expectation(training, storage, packed)
    events = run_threads(training)
    assert_expected(training, events, expected)
    replayed = training_on(config, runs_of_masks(config))
    assert_same(result(training, events), result(replayed, run_sequence(replayed)))


def test_a_batch_without_a_target_that_counts_has_no_loss_and_no_gradient() -> None:
    config = tiny("steps=2")
    tokens = masked(config, np.zeros(99))
    events = run_threads(training_on(config, tokens))
    first, second = (event for event in events if isinstance(event, Update))
    assert first.loss is second.loss is None
    assert first.counted == first.grad_norm == second.grad_norm == 0.0


def test_an_evaluation_is_the_mean_over_the_targets_that_count() -> None:
    config = tiny("steps=1")
    tokens = masked(config, np.arange(40 * config.model.context + 1) % 3 == 0)
    windows = evaluation_batches(tokens, batch_size=4, micro_batch=config.micro_batch, batches=2)
    shape = windows.micro_batches, config.micro_batch * config.model.context
    ids, targets = np.empty((2, *shape), np.int32)
    for micro in range(windows.micro_batches):
        windows.fill(0, micro, ids[micro], targets[micro])
    assert windows.tokens == windows.counted(0) == np.count_nonzero(targets >= 0) < targets.size
    training = build(config)
    ids, targets = (tokens.reshape(-1, config.model.context) for tokens in (ids, targets))
    record = reference.forward(start_of(training), ids, config.model.heads)
    expected = reference.cross_entropy_forward(record.logits, targets).sum() / windows.tokens
    with training.banks.lease(0) as lease:
        found = ValidationLoss(training.compute).mean_loss(lease.bank, windows)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_validation_text_of_which_nothing_counts_is_refused() -> None:
    config = tiny()
    with pytest.raises(DataError, match="a token that counts"):
        evaluation_batches(masked(config, np.zeros(99)), batch_size=4, micro_batch=2, batches=2)


def test_an_update_reports_the_means_of_the_terms_beside_the_cross_entropy() -> None:
    """Of both, and of all micro-batches and threads together; without them there is nothing to report."""
    plain, config = tiny("steps=1"), tiny("steps=1", *TERMS)
    (update,) = (event for event in run_threads(training_on(plain, runs_of_masks(plain))) if isinstance(event, Update))
    assert update.terms is None
    training = training_on(config, runs_of_masks(config))
    ids, targets = sequences(training, 0)
    record = reference.forward(start_of(training), ids, config.model.heads)
    expected = reference.loss_terms(record.logits, targets, 0.1, 1e-2) / np.count_nonzero(targets >= 0)
    (other,) = (event for event in run_threads(training) if isinstance(event, Update))
    assert other.terms == pytest.approx(tuple(expected), rel=1e-4)
    assert other.loss == update.loss, "the cross-entropy alone"
    assert other.grad_norm != update.grad_norm


def test_a_resumed_run_cannot_change_the_loss() -> None:
    assert not any(key.startswith("loss.") for key in trajectory(tiny()))
    assert trajectory(tiny(*TERMS))["loss.z_loss"] == 1e-2
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing: expected 0 to 1"):
        tiny("loss.label_smoothing=1.5")
