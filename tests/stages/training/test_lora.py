"""Training of low-rank adapters: gradients and updates of the reference, the guarantees, and the memory."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.stages.support import LLAMA, TINY, assert_same, build, planned, result, run_sequence, run_threads, tiny
from tests.stages.training.gradients import SPREAD, check_gradients
from tests.stages.training.support import replayed
from tests.stages.training.test_llama import STORAGE
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation, random_weights, start_from
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.pipeline import arena_size
from threadloom.stages.config import Config, ConfigError, LoraConfig, ResolvedConfig
from threadloom.stages.models import adapted_modules, lora_shapes, parameter_count, parameter_shapes
from threadloom.stages.resolve import load_config, to_json, with_adapters
from threadloom.stages.run import train

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
PRECISIONS = pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(name, marks=needs_compiler) for name in ("bf16", "fp16"))]
)
ALL = ("lora.rank=3", 'lora.targets=["all-linear"]', "lora.alpha=4.5")
SOME = ("lora.rank=2", "lora.alpha=5", "lora.rslora=true")
CASES = pytest.mark.parametrize(
    ("base", "settings"),
    [
        pytest.param(LLAMA, ALL, id="llama, all linear"),
        pytest.param(LLAMA, (*SOME, 'lora.save=["norm", "lm_head"]'), id="llama, defaults and modules to save"),
        pytest.param(TINY, ALL, id="gpt2, all linear"),
        pytest.param(TINY, (*SOME, 'lora.save=["wte"]'), id="gpt2, defaults and the embedding"),
    ],
)


def adapted(base: Config, *overrides: str) -> ResolvedConfig:
    return tiny(*overrides, base=base)


@PRECISIONS
@CASES
def test_every_gradient_is_that_of_the_reference(precision: str, base: Config, settings: tuple[str, ...]) -> None:
    sizes = ("batch_size=6", "micro_batch=2", "lanes=2", "steps=1", "threads.backward=2", f"precision={precision}")
    config = adapted(base, *settings, *sizes)
    check_gradients(config, *STORAGE[precision], spread=SPREAD * config.model.channels**-0.5)


@CASES
@pytest.mark.parametrize("delay", [0, 1])
def test_a_training_is_that_of_the_reference(base: Config, settings: tuple[str, ...], delay: int) -> None:
    training = build(adapted(base, *settings, *SMALL_STEPS, f"delay={delay}", "steps=4", "threads.backward=2"))
    start_from(training, random_weights(training.config))
    expected = expectation(training)
    assert_expected(training, run_threads(training), expected)


@PRECISIONS
@pytest.mark.parametrize("base", [LLAMA, TINY], ids=["llama", "gpt2"])
def test_dropout_depends_on_the_micro_batch_alone(precision: str, base: Config) -> None:
    common = (*ALL, f"precision={precision}", "delay=1", "steps=4", "lanes=2")
    expected = replayed(adapted(base, *common, "lora.dropout=0.3"))
    threads = ("lora.dropout=0.3", "threads.forward=2", "threads.backward=2", "slots=5")
    training = build(adapted(base, *common, *threads), evaluate=True)
    assert_same(result(training, run_threads(training)), expected)
    without = replayed(adapted(base, *common))
    assert without.updates[0][:2] == expected.updates[0][:2], "B is zero, so the first loss is that of the model"
    assert without.updates[3] != expected.updates[3]


@PRECISIONS
@CASES
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("shared", ["false", "true"])
def test_threads_do_not_change_a_bit(
    precision: str, base: Config, settings: tuple[str, ...], delay: int, shared: str
) -> None:
    common = (*settings, f"precision={precision}", f"delay={delay}", "steps=4", f"shared_lanes={shared}", "lanes=2")
    expected = replayed(adapted(base, *common))
    threads = ("threads.forward=2", "threads.backward=4", "threads.embed=2", "threads.update=2", "slots=6")
    training = build(adapted(base, *common, *threads), evaluate=True)
    assert_same(result(training, run_threads(training)), expected)


@PRECISIONS
@CASES
def test_the_model_is_frozen_and_blocks_stay_blocks(precision: str, base: Config, settings: tuple[str, ...]) -> None:
    config = adapted(base, *settings, f"precision={precision}", "optimizer.weight_decay=0.1")
    training, geometry = build(config), config.geometry()
    with training.banks.lease(0) as lease:
        start = {name: tensor.copy() for name, tensor in lease.bank.tensors.items()}
    run_sequence(training)
    inside = {name: np.zeros(shape, bool) for name, shape in lora_shapes(geometry).items() if name.endswith("_b")}
    assert geometry.lora is not None
    for module in adapted_modules(geometry):
        stem, rows = (
            module.tensor.removesuffix("_weight"),
            slice(module.first_row, module.first_row + geometry.lora.rank),
        )
        inside[f"{stem}_b"][:, rows, slice(*module.columns)] = True
    with training.banks.lease(config.steps) as lease:
        for name, tensor in lease.bank.tensors.items():
            if name in inside:
                assert (tensor[inside[name]] != 0).all(), name
                assert (tensor[~inside[name]] == 0).all(), name
            else:
                assert (name in config.frozen_tensors()) == np.array_equal(tensor, start[name]), name


@CASES
def test_lanes_and_moments_are_those_of_the_adapters(base: Config, settings: tuple[str, ...]) -> None:
    """`Training` compares the plan with what it allocates."""
    config = adapted(base, *settings, "delay=1")  # banks of forecasts
    trained = 4 * arena_size(parameter_shapes(config.geometry(), config.frozen_tensors()))
    plan = planned(config)
    assert plan["weight banks"] == trained * (config.delay + 1 + config.extra_banks)
    assert plan["optimizer state"] == 3 * trained
    assert plan["gradient lanes"] == trained * config.lanes


def test_adapters_start_as_those_of_peft() -> None:
    """`a` is uniform within 1 / √inputs, as torch.nn.Linear and kaiming_uniform_(a=√5); `b` is zero."""
    training = build(adapted(LLAMA, "lora.rank=8", 'lora.targets=["all-linear"]', "model.channels=64"))
    with training.banks.lease(0) as lease:
        for name in lora_shapes(training.config.geometry()):
            tensor = lease.bank.tensors[name]
            if name.endswith("_b"):
                assert not tensor.any()
                continue
            bound = tensor.shape[2] ** -0.5
            assert np.abs(tensor).max() <= bound
            # The variance of n uniform numbers is off by √(0.8 / n) of itself; six of these are allowed.
            assert abs(tensor.var() / (bound**2 / 3) - 1) < 6 * (0.8 / tensor.size) ** 0.5


def test_parameters_are_counted_without_the_zeros() -> None:
    config = adapted(LLAMA, "lora.rank=2", 'lora.targets=["q_proj", "v_proj"]')
    g, rank = config.geometry(), 2
    per_layer = rank * (g.channels + g.attn_width) + rank * (g.channels + g.key_value_width)
    assert parameter_count(g, config.frozen_tensors()) == g.layers * per_layer


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("lora.rank=2", 'lora.targets=["q_prj"]'), "q_prj"),
        (("lora.rank=2", 'lora.targets=["lm_head"]'), "lora.save"),
        (("lora.rank=2", 'lora.save=["nothing"]'), "nothing"),
        (("lora.rank=2", 'lora.save=["q_proj"]'), "a part of qkv_weight"),
        (("lora.rank=2", 'lora.save=["o_proj"]', 'lora.targets=["o_proj"]'), "that are not in lora.save"),
        (("lora.rank=2", 'train.freeze=["wte"]'), "train.freeze"),
        (("lora.rank=-1",), "lora.rank"),
        (("lora.rank=2", "lora.alpha=0"), "lora.alpha"),
        (("lora.alpha=3",), "lora.rank above 0"),
        (('lora.targets=["q_proj"]',), "lora.rank above 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(settings: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        adapted(LLAMA, *settings)


def test_a_module_name_matches_as_in_peft() -> None:
    geometry = adapted(LLAMA).geometry()
    by_ending = LoraConfig(rank=1, targets=("self_attn.q_proj", "down_proj")).lora(geometry)
    assert by_ending is not None
    assert by_ending.modules == {"self_attn.q_proj", "mlp.down_proj"}
    every = LoraConfig(rank=1, targets=("all-linear",)).lora(geometry)
    assert every is not None
    assert len(every.modules) == 7


def test_a_configuration_file_keeps_the_adapters(tmp_path: Path) -> None:
    config = adapted(LLAMA, *ALL)
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_config(str(tmp_path / "config.json")).lora == config.lora


def test_adapters_need_a_model_that_the_run_starts_from(tmp_path: Path) -> None:
    config = msgspec.structs.replace(tiny(base=LLAMA), lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="--init"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("own_rate", [True, False])
def test_the_settings_for_adapters(own_rate: bool) -> None:
    config = with_adapters(tiny(base=LLAMA), 7, own_rate=own_rate)
    assert (config.lora.rank, config.lora.targets) == (7, ("all-linear",))
    assert config.optimizer.lr == (8e-3 if own_rate else LLAMA.optimizer.lr)
