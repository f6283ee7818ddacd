"""The configuration: what is refused and how it is named, and what decides the weights."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.stages.resolve.support import configs, refusal, tiny
from threadloom.stages.config import (
    Config,
    Gemm,
    LossScaling,
    MatmulPrecision,
    Precision,
    ScheduleConfig,
    ScheduleKind,
    TokenizerKind,
    flatten,
)
from threadloom.stages.resolve.loading import (
    CONFIG_NAMES,
    apply_overrides,
    from_json,
    load_config,
    setting_types,
    to_json,
)
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.trajectory_settings import trajectory, trajectory_differences
from threadloom.stages.resolve.validation import validate

TABLE = {  # the design's: V, T, d, L, heads, batch
    "nanogpt-cpu": (None, 64, 128, 4, 4, 12),
    "shakespeare": (None, 256, 384, 6, 6, 16),
    "small": (10000, 128, 256, 2, 8, 32),
    "optimized": (16000, 128, 384, 4, 6, 16),
    "large": (16000, 128, 384, 6, 6, 16),
    "gpt2": (50257, 64, 768, 12, 12, 4),
}


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
        (MatmulPrecision, "high", MatmulPrecision.HIGH),
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


def test_a_choice_that_is_called_none_or_auto_is_that_choice() -> None:
    config = apply_overrides(tiny(), ["loss_scale.kind=none", "precision=auto"])
    assert (config.loss_scale.kind, config.precision) == (LossScaling.NONE, Precision.AUTO)
    assert apply_overrides(config, ["loss_scale.kind=null"]).loss_scale.kind is None


@pytest.mark.parametrize(
    ("override", "subject", "words"),
    [
        ("dleay=2", "dleay", ["delay"]),
        ("thread.forward=2", "thread.forward", ["threads.forward"]),
        ("lr=1e-3", "lr", ["did you mean 'optimizer.lr'?"]),
        ("threads=2", "threads", ["section", "threads.backward"]),
        ("delay=1.5", "delay", ["an integer", "1.5"]),
        ("delay=true", "delay", ["an integer"]),
        ("delay=", "delay", ["an integer"]),
        ("lanes=two", "lanes", ["an integer or null", "two"]),
        ("optimizer.lr=fast", "optimizer.lr", ["a number"]),
        ("schedule.kind=cos", "schedule.kind", ["constant, cosine, linear, step, cosine_restarts"]),
        ("delay", "delay", ["key=value"]),
        ("precision=bfloat16", "precision", ["bf16, fp16", "did you mean bf16?"]),
        ("precision=FP32", "precision", ["did you mean float32?"]),
        ("loss_scale.kind=dynamc", "loss_scale.kind", ["did you mean dynamic?"]),
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
        (["micro_batch=6", "lanes=3"], "lanes", ["2 micro-batches", "got 3"]),
        (["lanes=13"], "lanes", ["12 micro-batches"]),
        (["delay=-1"], "delay", ["0 to 64"]),
        (["batch_size=0"], "batch_size", ["got 0"]),
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
        (raw(steps="10"), "steps", ['got "10"', "an integer"]),
        (raw(model=3), "model", ["a JSON object", "got 3"]),
        (raw(model={"context": 8}), "model.layers", ["got nothing in here.json"]),
        ('{"name": "x"}', "model", ["got nothing in here.json"]),
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
        "threads.forward=7", "threads.backward=7", "threads.update=7", "channel_capacity=9", "slots=3", "extra_banks=2",
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


def test_a_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError, match=re.escape("immutable")):
        tiny().steps = 3  # type: ignore[misc]
