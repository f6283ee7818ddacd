"""The choices of `resolve` for open settings, and its errors."""

import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.resolve.support import configs, refusal, tiny
from tests.stages.support import planned
from threadloom.stages.config import Config, Precision, ResolvedThreads, flatten
from threadloom.stages.models import Geometry, parameter_count
from threadloom.stages.resolve import resolution
from threadloom.stages.resolve.loading import apply_overrides, load_config, resolved_from_json, to_json
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.trajectory_settings import trajectory


@settings(deadline=None)
@given(configs, st.integers(1, 64), st.integers(1, 9))
def test_a_resolved_configuration_is_complete_and_valid_and_resolves_to_itself(
    config: Config, cores: int, vocabulary: int
) -> None:
    if config.model.vocab_size is not None:
        vocabulary = min(vocabulary, config.model.vocab_size)
    config = apply_overrides(config, ["schedule.min_lr=0"])
    resolved = resolve(config, cores, vocabulary)
    values = flatten(resolved)
    assert {key for key, value in values.items() if value is None} <= {"data.conversations"}, "where None is a value"
    for key, value in flatten(config).items():
        assert value is None or values[key] == value
    assert resolve(resolved, cores + 1, vocabulary) == resolved
    assert resolved_from_json(to_json(resolved)) == resolved
    assert resolved.batch_size % resolved.micro_batch == 0
    assert 1 <= resolved.lanes <= min(cores, resolved.micro_batches)
    assert resolved.lanes <= 8 or resolved.lanes * parameter_count(resolved.model.geometry()) * 4 <= 2 << 30
    rows = resolved.micro_batch * resolved.model.context
    assert rows <= 512 or resolved.micro_batch == 1
    if config.sequences >= min(cores, 8) and config.batch_size >= min(cores, 8):
        assert resolved.micro_batches >= min(cores, 8)


@pytest.mark.parametrize(
    ("name", "cores", "micro_batch", "lanes"),
    [
        ("nanogpt-cpu", 1, 4, 1),
        ("nanogpt-cpu", 2, 3, 2),
        ("small", 2, 2, 2),
        ("shakespeare", 4, 1, 4),
        ("gpt2", 2, 2, 1),
    ],
)
def test_micro_batches_fit_the_cache_and_load_the_lanes_evenly(
    name: str, cores: int, micro_batch: int, lanes: int
) -> None:
    config = load_config(name)
    resolved = resolve(config, cores, config.model.vocab_size or 65)
    assert (resolved.micro_batch, resolved.lanes) == (micro_batch, lanes)


@pytest.mark.parametrize(
    ("name", "rows", "rows_in_16_bits"),
    [
        ("small", 256, 512),
        ("large", 256, 512),
        ("shakespeare", 256, 512),
        ("nanogpt-cpu", 192, 384),
        ("gpt2", 128, 128),
    ],
)
def test_micro_batches_are_twice_as_large_in_16_bits(name: str, rows: int, rows_in_16_bits: int) -> None:
    for precision, expected in ((Precision.FLOAT32, rows), (Precision.BF16, rows_in_16_bits)):
        config = apply_overrides(load_config(name), [f"precision={precision.value}"])
        resolved = resolve(config, 2, config.model.vocab_size or 65)
        assert resolved.micro_batch * resolved.model.context == expected


@pytest.mark.parametrize(
    ("name", "micro_batch", "lanes"),
    [("nanogpt-cpu", 1, 12), ("shakespeare", 1, 16), ("small", 2, 16), ("large", 1, 16)],
)
def test_sixteen_cores_have_one_lane_each_if_batch_and_memory_allow_it(name: str, micro_batch: int, lanes: int) -> None:
    config = load_config(name)
    resolved = resolve(config, 16, config.model.vocab_size or 65)
    assert (resolved.micro_batch, resolved.lanes, resolved.threads.backward) == (micro_batch, lanes, lanes)


def test_lanes_of_a_large_model_stay_few_and_are_shared() -> None:
    for batch, cores, lanes, threads in ((4, 2, 1, 2), (4, 3, 2, 3), (4, 16, 2, 4), (64, 16, 4, 16)):
        resolved = resolve(apply_overrides(load_config("gpt2"), [f"batch_size={batch}"]), cores)
        assert (resolved.lanes, resolved.shared_lanes, resolved.threads.backward) == (lanes, True, threads)


@pytest.mark.parametrize(
    ("overrides", "lanes", "shared"),
    [
        (["precision=bf16"], 2, False),
        (["shared_lanes=false"], 2, False),
        (["precision=bf16", "shared_lanes=true"], 1, True),
        (["precision=bf16", "batch_size=32"], 1, True),
        (["lanes=2"], 2, False),
        (["batch_size=1"], 1, False),
        (["model.context=1024", "batch_size=12", "gradient_accumulation_steps=40"], 2, False),
    ],
)
def test_large_lanes_are_shared(overrides: list[str], lanes: int, shared: bool) -> None:
    resolved = resolve(apply_overrides(load_config("gpt2"), overrides), 2)
    assert (resolved.lanes, resolved.shared_lanes) == (lanes, shared)
    assert not resolve(load_config("large"), 2).shared_lanes
    assert not resolve(load_config("gpt2"), 1).shared_lanes


@given(
    st.sampled_from([16, 64, 256, 1024]), st.integers(1, 16), st.sampled_from([1, 2, 8, 40, 480]), st.integers(1, 16)
)
@settings(deadline=None, max_examples=60)
def test_automatic_sharing_of_lanes_saves_memory(context: int, batch: int, steps: int, cores: int) -> None:
    sizes = (f"model.context={context}", f"batch_size={batch}", f"gradient_accumulation_steps={steps}")
    chosen, apart = (
        planned(resolve(apply_overrides(load_config("gpt2"), [*sizes, *more]), cores))
        for more in ((), ("shared_lanes=false",))
    )
    parts = ("gradient lanes", "input gradients")
    assert sum(chosen[part] for part in parts) <= sum(apart[part] for part in parts)


def test_slots_are_limited_by_the_delay() -> None:
    slots = [resolve(tiny(batch_size=2, micro_batch=1, delay=delay), 4).slots for delay in range(5)]
    assert slots == [2, 4, 6, 8, 8]


def test_shared_lanes_are_part_of_the_trajectory_only_if_true() -> None:
    shared, apart = (
        trajectory(resolve(tiny(lanes=1, micro_batch=1, shared_lanes=shared), 2)) for shared in (True, False)
    )
    assert shared == {**apart, "shared_lanes": True}


def test_choices_for_the_cores() -> None:
    resolved = resolve(load_config("small"), 3)
    assert resolved.threads == ResolvedThreads(embed=1, forward=3, backward=3, reduce=3, update=3, blas=1)
    assert (resolved.slots, resolved.extra_banks) == (6, 1)
    large = resolve(load_config("large"), 3)
    assert (large.threads.forward, large.slots, large.extra_banks) == (3, 3, 0)
    few = resolve(tiny(batch_size=2, micro_batch=1), 5)
    assert (few.lanes, few.threads.backward, few.threads.forward, few.slots) == (2, 2, 5, 2)


@pytest.mark.parametrize(
    ("precision", "copies"), [(Precision.FLOAT32, 1.0), (Precision.FP16, 1.5), (Precision.BF16, 2.0)]
)
def test_extra_banks_count_packed_weights(monkeypatch: pytest.MonkeyPatch, precision: Precision, copies: float) -> None:
    config = tiny(precision=precision)
    count = parameter_count(resolve(config, 2).model.geometry())
    for room, spare in ((1.0, 1), (0.99, 0)):
        monkeypatch.setattr(resolution, "SMALL_MODEL_ELEMENTS", copies * count * room)
        assert resolve(config, 2).extra_banks == spare


def test_an_open_vocabulary_is_that_of_the_tokenizer() -> None:
    config = load_config("nanogpt-cpu")
    assert resolve(config, 2, 97).model.geometry() == Geometry(97, 64, 4, 4, 128)
    with refusal("model.vocab_size", "null", "resolve"):
        resolve(config, 2)
    with refusal("model.vocab_size", "97", "65"):
        resolve(apply_overrides(config, ["model.vocab_size=65"]), 2, 97)


def test_a_run_shorter_than_its_warm_up_is_allowed() -> None:
    config = apply_overrides(load_config("nanogpt-cpu"), ["steps=20"])
    assert resolve(config, 2, 65).schedule.decay_steps == 100
