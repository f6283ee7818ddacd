"""The configuration: what is refused and how it is named, what is chosen, and what decides the weights."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import config as module
from stages import resolution
from stages.config import (
    CONFIG_NAMES,
    Config,
    ConfigError,
    DataConfig,
    Gemm,
    LossScaling,
    Matmul,
    ModelConfig,
    OptimizerConfig,
    Precision,
    ScheduleConfig,
    ScheduleKind,
    ThreadsConfig,
    TokenizerKind,
    apply_overrides,
    flatten,
    from_json,
    load_config,
    micro_batches,
    resolve,
    setting_types,
    to_json,
    trajectory,
    trajectory_differences,
    validate,
)
from stages.parameters import Geometry, parameter_count

TABLE = {  # the design's: V, T, d, L, heads, batch
    "nanogpt-cpu": (None, 64, 128, 4, 4, 12),
    "shakespeare": (None, 256, 384, 6, 6, 16),
    "small": (10000, 128, 256, 2, 8, 32),
    "optimized": (16000, 128, 384, 4, 6, 16),
    "large": (16000, 128, 384, 6, 6, 16),
    "gpt2": (50257, 64, 768, 12, 12, 4),
}


def tiny(**changes: object) -> Config:
    base = Config(
        name="tiny",
        model=ModelConfig(vocab_size=11, context=8, layers=1, heads=2, channels=6),
        batch_size=12,
        steps=10,
    )
    return msgspec.structs.replace(base, **changes)


counts = st.integers(1, 9)
open_counts = st.none() | counts
rates = st.floats(1e-6, 1.0)
configs = st.builds(
    Config,
    name=st.text(max_size=5),
    model=st.builds(
        lambda vocab, context, layers, heads, width: ModelConfig(
            vocab_size=vocab, context=context, layers=layers, heads=heads, channels=heads * width
        ),
        open_counts,
        st.integers(1, 700),
        counts,
        counts,
        counts,
    ),
    data=st.builds(DataConfig, text=st.lists(st.text(max_size=5), max_size=2).map(tuple)),
    batch_size=st.integers(1, 48),
    gradient_accumulation_steps=counts,
    delay=st.integers(0, 3),
    steps=counts,
    seed=st.integers(0, 2**63 - 1),
    optimizer=st.builds(OptimizerConfig, lr=rates, weight_decay=rates),
    schedule=st.builds(ScheduleConfig, kind=st.sampled_from(ScheduleKind), warmup=counts),
    threads=st.builds(ThreadsConfig, embed=open_counts, forward=open_counts, backward=open_counts),
    slots=open_counts,
)


def refusal(subject: str, *words: str) -> "pytest.RaisesExc[ConfigError]":
    def names_it(error: ConfigError) -> bool:
        return error.subject == subject and all(word in str(error) for word in words)

    return pytest.RaisesExc(ConfigError, check=names_it)


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_shipped_configurations_have_the_sizes_of_the_table(name: str) -> None:
    config = load_config(name)
    m = config.model
    assert (m.vocab_size, m.context, m.channels, m.layers, m.heads, config.batch_size) == TABLE[name]
    assert config.name == name
    assert config.gradient_accumulation_steps == 1
    validate(config)


def test_nanogpt_cpu_is_the_published_recipe() -> None:
    config = load_config("nanogpt-cpu")
    o, s = config.optimizer, config.schedule
    assert (config.steps, o.lr, s.min_lr, s.warmup, s.kind) == (2000, 1e-3, 1e-4, 100, ScheduleKind.COSINE)
    assert (o.beta1, o.beta2, o.weight_decay, o.clip, o.eps) == (0.9, 0.99, 0.1, 1.0, 1e-8)
    assert (config.data.tokenizer, config.data.train_fraction) == (TokenizerKind.CHARACTERS, 0.9)
    assert resolve(config, 2, 65).schedule.decay_steps == 2000


@settings(deadline=None)
@given(configs)
def test_json_gives_back_the_same_configuration(config: Config) -> None:
    assert from_json(to_json(config)) == config


@settings(deadline=None)
@given(configs, st.integers(1, 64), st.integers(1, 9))
def test_a_resolved_configuration_is_complete_valid_and_stays_as_it_is(
    config: Config, cores: int, vocabulary: int
) -> None:
    if config.model.vocab_size is not None:
        vocabulary = min(vocabulary, config.model.vocab_size)
    config = apply_overrides(config, ["schedule.min_lr=0"])
    resolved = resolve(config, cores, vocabulary)
    values = flatten(resolved)
    assert None not in values.values()
    for key, value in flatten(config).items():
        assert value is None or values[key] == value
    assert resolve(resolved, cores + 1, vocabulary) == resolved
    assert from_json(to_json(resolved)) == resolved
    assert resolved.micro_batch is not None
    assert resolved.lanes is not None
    assert resolved.batch_size % resolved.micro_batch == 0
    assert 1 <= resolved.lanes <= min(cores, micro_batches(resolved))
    assert resolved.lanes <= 8 or resolved.lanes * parameter_count(resolved.model.geometry()) * 4 <= 2 << 30
    rows = resolved.micro_batch * resolved.model.context
    assert rows <= 512 or resolved.micro_batch == 1
    if config.sequences >= min(cores, 8) and config.batch_size >= min(cores, 8):
        assert micro_batches(resolved) >= min(cores, 8)


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
def test_numbers_of_half_the_size_come_twice_as_many(name: str, rows: int, rows_in_16_bits: int) -> None:
    for precision, expected in ((Precision.FLOAT32, rows), (Precision.BF16, rows_in_16_bits)):
        config = apply_overrides(load_config(name), [f"precision={precision.value}"])
        resolved = resolve(config, 2, config.model.vocab_size or 65)
        assert (resolved.micro_batch or 0) * resolved.model.context == expected


@pytest.mark.parametrize(
    ("name", "micro_batch", "lanes"),
    [("nanogpt-cpu", 1, 12), ("shakespeare", 1, 16), ("small", 2, 16), ("large", 1, 16)],
)
def test_sixteen_cores_have_a_lane_each_where_the_batch_and_the_memory_allow_it(
    name: str, micro_batch: int, lanes: int
) -> None:
    config = load_config(name)
    resolved = resolve(config, 16, config.model.vocab_size or 65)
    assert (resolved.micro_batch, resolved.lanes, resolved.threads.backward) == (micro_batch, lanes, lanes)


def test_lanes_of_a_large_model_stay_few_and_are_shared() -> None:
    for batch, cores, lanes, threads in ((4, 2, 1, 2), (4, 3, 2, 3), (4, 16, 2, 4), (64, 16, 4, 16), (1, 2, 1, 1)):
        resolved = resolve(apply_overrides(load_config("gpt2"), [f"batch_size={batch}"]), cores)
        assert (resolved.lanes, resolved.shared_lanes, resolved.threads.backward) == (lanes, True, threads)


@pytest.mark.parametrize(
    ("overrides", "lanes", "shared"),
    [
        (["precision=bf16"], 2, False),
        (["shared_lanes=false"], 2, False),
        (["precision=bf16", "shared_lanes=true"], 1, True),
        (["lanes=2"], 2, True),
    ],
)
def test_lanes_are_shared_where_memory_counts_more_than_speed(overrides: list[str], lanes: int, shared: bool) -> None:
    resolved = resolve(apply_overrides(load_config("gpt2"), overrides), 2)
    assert (resolved.lanes, resolved.shared_lanes) == (lanes, shared)
    assert not resolve(load_config("large"), 2).shared_lanes


def test_no_slot_waits_for_a_version_that_is_far_away() -> None:
    assert [resolve(tiny(batch_size=2, micro_batch=1, delay=delay), 4).slots for delay in (0, 1, 2, 3)] == [2, 4, 6, 6]


def test_whether_lanes_are_shared_decides_the_weights_and_earlier_runs_go_on() -> None:
    shared, apart = (
        trajectory(resolve(tiny(lanes=1, micro_batch=1, shared_lanes=shared), 2)) for shared in (True, False)
    )
    assert shared == {**apart, "shared_lanes": True}


def test_what_is_chosen_for_the_cores() -> None:
    resolved = resolve(load_config("small"), 3)
    assert resolved.threads == ThreadsConfig(embed=1, forward=3, backward=3, reduce=3, update=3, blas=1)
    assert (resolved.slots, resolved.spare_banks) == (6, 1)
    assert resolve(load_config("large"), 2).spare_banks == 0
    few = resolve(tiny(batch_size=2, micro_batch=1), 5)
    assert (few.lanes, few.threads.backward, few.threads.forward, few.slots) == (2, 2, 5, 2)


@pytest.mark.parametrize(
    ("precision", "copies"), [(Precision.FLOAT32, 1.0), (Precision.FP16, 1.5), (Precision.BF16, 2.0)]
)
def test_a_spare_bank_counts_its_forms(monkeypatch: pytest.MonkeyPatch, precision: Precision, copies: float) -> None:
    config = tiny(precision=precision)
    count = parameter_count(config.model.geometry())
    for room, spare in ((1.0, 1), (0.99, 0)):
        monkeypatch.setattr(resolution, "SPARED", copies * count * room)
        assert resolve(config, 2).spare_banks == spare


def test_an_open_vocabulary_is_the_tokenizers() -> None:
    config = load_config("nanogpt-cpu")
    assert resolve(config, 2, 97).model.geometry() == Geometry(97, 64, 4, 4, 128)
    with refusal("model.vocab_size", "null", "resolve"):
        config.model.geometry()
    with refusal("model.vocab_size"):
        resolve(config, 2)
    with refusal("model.vocab_size", "97", "65"):
        resolve(apply_overrides(config, ["model.vocab_size=65"]), 2, 97)


def test_a_run_shorter_than_its_warm_up_is_allowed() -> None:
    config = apply_overrides(load_config("nanogpt-cpu"), ["steps=20"])
    assert resolve(config, 2, 65).schedule.decay_steps == 100


def sample(kind: object) -> tuple[str, object]:
    """A text for --set and the value that it stands for, of each type that a setting has."""
    options: list[tuple[object, str, object]] = [
        (int, "3", 3),
        (int | None, "auto", None),
        (float, "3e-4", 3e-4),
        (str, "17", "17"),
        (tuple[str, ...], "a dir/b.txt", ("a dir/b.txt",)),
        (ScheduleKind, "linear", ScheduleKind.LINEAR),
        (TokenizerKind, "bpe", TokenizerKind.BPE),
        (Gemm | None, "blas", Gemm.BLAS),
        (Precision, "auto", Precision.AUTO),
        (Matmul, "high", Matmul.HIGH),
        (LossScaling | None, "static", LossScaling.STATIC),
        (bool | None, "true", True),
        (bool, "false", False),
    ]
    return next((text, value) for option, text, value in options if option == kind)


@pytest.mark.parametrize("key", list(setting_types()))
def test_overrides_reach_every_setting(key: str) -> None:
    text, value = sample(setting_types()[key])
    before = tiny()
    after = apply_overrides(before, [f"{key}={text}"])
    assert flatten(after) == flatten(before) | {key: value}


def test_overrides_in_the_forms_that_people_write() -> None:
    config = apply_overrides(
        tiny(),
        ["delay=1", "delay = 2", "threads.forward=1", "micro_batch=none", 'data.text=["a","b"]', "optimizer.lr=1"],
    )
    assert (config.delay, config.threads.forward, config.micro_batch) == (2, 1, None)
    assert config.data.text == ("a", "b")
    assert config.optimizer.lr == 1.0
    assert apply_overrides(tiny(), []) == tiny()


@pytest.mark.parametrize(
    ("override", "subject", "words"),
    [
        ("dleay=2", "dleay", ["delay"]),
        ("thread.forward=2", "thread.forward", ["threads.forward"]),
        ("lr=1e-3", "lr", ["did you mean optimizer.lr?"]),
        ("threads=2", "threads", ["section", "threads.backward"]),
        ("delay=1.5", "delay", ["a whole number", "1.5"]),
        ("delay=true", "delay", ["a whole number"]),
        ("delay=", "delay", ["a whole number"]),
        ("lanes=two", "lanes", ["a whole number or null", "two"]),
        ("optimizer.lr=fast", "optimizer.lr", ["a number"]),
        ("schedule.kind=cos", "schedule.kind", ["constant, cosine, linear, step, cosine_restarts"]),
        ("delay", "delay", ["key=value"]),
    ],
)
def test_overrides_that_are_refused(override: str, subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        apply_overrides(tiny(), [override])


@pytest.mark.parametrize(
    ("overrides", "subject", "words"),
    [
        (["model.channels=7"], "model.channels", ["model.heads = 2", "[1, 7]"]),
        (["micro_batch=5"], "micro_batch", ["batch_size = 12", "[1, 2, 3, 4, 6, 12]"]),
        (["micro_batch=6", "lanes=3"], "lanes", ["2 micro-batches", "found 3"]),
        (["lanes=13"], "lanes", ["12 micro-batches"]),
        (["delay=-1"], "delay", ["0 to 64"]),
        (["batch_size=0"], "batch_size", ["found 0"]),
        (["steps=0"], "steps", []),
        (["threads.update=0"], "threads.update", []),
        (["threads.update=100000"], "threads.update", []),
        (["channel_capacity=0"], "channel_capacity", []),
        (["model.context=1000000000000"], "model.context", []),
        (["model.layers=1000", "model.channels=60000", "model.heads=10"], "model", ["parameters"]),
        (["seed=99999999999999999999"], "seed", []),
        (["optimizer.beta2=1"], "optimizer.beta2", []),
        (["optimizer.lr=-1"], "optimizer.lr", []),
        (["optimizer.lr=1e400"], "optimizer.lr", []),
        (["schedule.min_lr=0.5"], "schedule.min_lr", ["optimizer.lr"]),
        (["schedule.warmup=5", "schedule.decay_steps=4"], "schedule.decay_steps", ["warmup = 5"]),
        (["data.train_fraction=1"], "data.train_fraction", []),
        (["data.tokenizer=bpe", "model.vocab_size=null"], "model.vocab_size", ["BPE"]),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(overrides: list[str], subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        resolve(apply_overrides(tiny(), overrides), 2)


def raw(**changes: object) -> str:
    return json.dumps(json.loads(to_json(tiny())) | changes)


@pytest.mark.parametrize(
    ("text", "subject", "words"),
    [
        (raw(batch_sise=3), "batch_sise", ["batch_size", "here.json"]),
        (raw(threads={"forwards": 1}), "threads.forwards", ["threads.forward"]),
        (raw(steps="10"), "steps", ['found "10"', "a whole number"]),
        (raw(model=3), "model", ["a JSON object", "found 3"]),
        (raw(model={"context": 8}), "model.layers", ["missing"]),
        ('{"name": "x"}', "model", ["missing"]),
        ("[1]", "here.json", ["a JSON object"]),
        ('{"name": ', "here.json", ["JSON"]),
        ("", "here.json", ["JSON"]),
    ],
)
def test_files_that_are_refused(text: str, subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        from_json(text, "here.json")


def test_configurations_are_loaded_by_name_by_file_and_from_a_run_directory(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(to_json(tiny(steps=7)))
    assert load_config(file) == load_config(tmp_path) == load_config(str(file)) == tiny(steps=7)
    with refusal("nanogpt", "nanogpt-cpu", "did you mean"):
        load_config("nanogpt")
    with refusal(str(tmp_path / "none.json"), "No such file"):
        load_config(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with refusal(str(tmp_path / "bytes.json")):
        load_config(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    "override",
    [
        "threads.forward=7", "threads.backward=7", "threads.update=7", "channel_capacity=9", "slots=3", "spare_banks=2",
        "name=other", "steps=11", "evaluation.interval=3", "checkpoint.keep=9", "trace.batches=1", "data.text=x",
        "schedule.every=7",
    ],
)  # fmt: skip
def test_what_leaves_the_trajectory_alone(override: str) -> None:
    resolved = resolve(tiny(), 2)
    assert trajectory(apply_overrides(resolved, [override])) == trajectory(resolved)


@pytest.mark.parametrize(
    "override",
    [
        "threads.blas=2", "micro_batch=1", "lanes=1", "delay=1", "seed=1", "batch_size=24", "optimizer.lr=2e-3",
        "gradient_accumulation_steps=2", "optimizer.clip=0.5", "model.layers=2", "schedule.kind=linear",
        "schedule.warmup=3", "schedule.min_lr=1e-5", "schedule.decay_steps=9", "data.train_fraction=0.8",
        "precision=bf16",
    ],
)  # fmt: skip
def test_what_changes_the_trajectory_is_named(override: str) -> None:
    resolved = resolve(tiny(), 2)
    changed = apply_overrides(resolved, [override])
    differences = trajectory_differences(trajectory(resolved), trajectory(changed))
    key = override.partition("=")[0]
    assert key in differences
    assert differences[key] == (trajectory(resolved)[key], trajectory(changed)[key])
    if key != "schedule.kind":
        assert list(differences) == [key]


def test_steps_count_only_where_the_schedule_ends_with_them() -> None:
    constant = tiny(schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT))
    assert trajectory(resolve(constant, 2)) == trajectory(resolve(apply_overrides(constant, ["steps=99"]), 2))
    short, longer = (trajectory(resolve(tiny(steps=steps), 2)) for steps in (10, 99))
    assert trajectory_differences(short, longer) == {"schedule.decay_steps": (10, 99)}


def test_a_trajectory_survives_json_and_knows_the_text_by_its_checksum() -> None:
    picked = trajectory(resolve(tiny(), 2), "abc")
    assert json.loads(json.dumps(picked)) == picked
    assert trajectory_differences(picked, {**picked, "data.text_sha256": "d"}) == {"data.text_sha256": ("abc", "d")}


def test_the_public_names() -> None:
    assert sorted(module.__all__) == module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError, match=re.escape("immutable")):
        tiny().steps = 3  # type: ignore[misc]
