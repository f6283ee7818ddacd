"""Reading and changing configurations."""

import enum
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.stages.resolve.support import configs, refusal, tiny
from threadloom.stages.config import (
    Config,
    ConfigError,
    Gpt2Config,
    LlamaConfig,
    LossScaling,
    ModelArchitecture,
    OptimizerGroup,
    Precision,
    ScheduleKind,
    TokenizerKind,
    flatten,
)
from threadloom.stages.resolve.loading import (
    CONFIG_NAMES,
    apply_overrides,
    from_json,
    load_config,
    to_json,
)
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.setting_types import setting_types
from threadloom.stages.resolve.validation import validate

TABLE = {  # V, T, d, L, heads, batch
    "nanogpt-tuned": (None, 64, 128, 4, 4, 12),
    "nanogpt-pipelined": (None, 64, 128, 4, 4, 12),
    "nanogpt-cpu": (None, 64, 128, 4, 4, 12),
    "shakespeare": (None, 256, 384, 6, 6, 16),
    "small": (10000, 128, 256, 2, 8, 32),
    "optimized": (16000, 128, 384, 4, 6, 16),
    "large": (16000, 128, 384, 6, 6, 16),
    "gpt2": (50257, 64, 768, 12, 12, 4),
    "llama-small": (8192, 256, 384, 8, 6, 8),
    "smollm2-135m": (49152, 512, 576, 30, 9, 8),
    "qwen3-0.6b": (151936, 512, 1024, 28, 16, 8),
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
    o, s = resolve(config, 2, 65).optimizer, config.schedule
    assert (config.steps, o.lr, s.min_lr, s.warmup, s.kind) == (2000, 1e-3, 1e-4, 100, ScheduleKind.COSINE)
    assert (o.beta1, o.beta2, o.weight_decay, o.clip, o.eps) == (0.9, 0.99, 0.1, 1.0, 1e-8)
    assert (config.data.tokenizer, config.data.train_fraction) == (TokenizerKind.CHARACTERS, 0.9)
    assert resolve(config, 2, 65).schedule.decay_steps == 2000


@settings(deadline=None)
@given(configs)
def test_json_round_trip(config: Config) -> None:
    assert from_json(to_json(config)) == config


def sample(kind: object) -> tuple[str, object]:
    """Return a text for --set and the parsed value, for each type of setting."""
    options: list[tuple[object, str, object]] = [
        (int, "3", 3),
        (int | None, "auto", None),
        (float, "3e-4", 3e-4),
        (str, "17", "17"),
        (tuple[str, ...], "a dir/b.txt", ("a dir/b.txt",)),
        (tuple[int, ...], "3", (3,)),
        (tuple[tuple[int, int], ...], "[[3,2],[0,1]]", ((3, 2), (0, 1))),
        (
            tuple[OptimizerGroup, ...],
            '[{"match": "wte", "lr": 0.5}, {"match": "*", "decay": 0}]',
            (OptimizerGroup(match="wte", lr=0.5), OptimizerGroup(match="*", decay=0.0)),
        ),
        (tuple[float, ...], "[3,1]", (3.0, 1.0)),
        (dict[str, str], '{"a": "b.txt"}', {"a": "b.txt"}),
        (float | None, "0.5", 0.5),
        (bool | None, "true", True),
        (bool, "false", False),
    ]
    for choices in (kind, *typing.get_args(kind)):
        if isinstance(choices, type) and issubclass(choices, enum.Enum):
            last = list(choices)[-1]
            return last.value, last
    return next((text, value) for option, text, value in options if option == kind)


MODELS = {
    ModelArchitecture.GPT2: tiny().model,
    ModelArchitecture.LLAMA: LlamaConfig(context=8, layers=5, heads=4, channels=24),
}
SETTINGS = [
    pytest.param(architecture, key, id=f"{architecture.value}-{key}")
    for architecture in ModelArchitecture
    for key in setting_types(architecture=architecture)
    if key != "model.architecture" and (key.startswith("model.") or architecture is ModelArchitecture.GPT2)
]


@pytest.mark.parametrize(("architecture", "key"), SETTINGS)
def test_overrides_reach_every_setting(architecture: ModelArchitecture, key: str) -> None:
    text, value = sample(setting_types()[key])
    before = tiny(model=MODELS[architecture])
    after = apply_overrides(before, [f"{key}={text}"])
    assert flatten(after) == flatten(before) | {key: value}


def test_another_architecture_keeps_the_settings_that_both_have() -> None:
    start = tiny(model=Gpt2Config(context=8, layers=3, heads=2, channels=6, residual_scaling=False))
    # the architecture is changed first, wherever it is given
    llama = apply_overrides(start, ["model.kv_heads=1", "model.architecture=llama", "model.layers=4"])
    assert llama.model == LlamaConfig(context=8, layers=4, heads=2, channels=6, residual_scaling=False, kv_heads=1)
    assert from_json(to_json(llama)) == llama
    back = apply_overrides(llama, ["model.architecture=gpt2", "model.layers=3"])
    assert back == start
    assert apply_overrides(back, ["model.architecture=gpt2"]) == start


def test_override_syntax() -> None:
    config = apply_overrides(
        tiny(),
        ["delay=1", "delay = 2", "threads.forward=1", "micro_batch=none", 'data.text=["a","b"]', "optimizer.lr=1"],
    )
    assert (config.delay, config.threads.forward, config.micro_batch) == (2, 1, None)
    assert config.data.text == ("a", "b")
    assert config.optimizer.lr == 1.0
    assert apply_overrides(tiny(), []) == tiny()


def test_enum_values_called_none_and_auto_are_not_null() -> None:
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
        (
            "model.kv_heads=1",
            "model.kv_heads",
            ["of the architecture gpt2", "one of llama", "set model.architecture=llama"],
        ),
        ("model.rotary.theta=1", "model.rotary.theta", ["set model.architecture=llama"]),
        ("model.rotary=1", "model.rotary", ["set model.architecture=llama"]),
        ("model.kv_haeds=1", "model.kv_haeds", ["did you mean 'model.kv_heads'"]),
        ("model.architecture=lama", "model.architecture", ["one of gpt2, llama", "did you mean llama?"]),
        ("model.architecture=null", "model.architecture", ["one of gpt2, llama"]),
    ],
)
def test_invalid_overrides_are_rejected(override: str, subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        apply_overrides(tiny(), [override])


def raw(**changes: object) -> str:
    return json.dumps(json.loads(to_json(tiny())) | changes)


def raw_model(**changes: object) -> dict[str, object]:
    """Return the section of a small model without its architecture, as in a file of an earlier version, changed."""
    model: dict[str, object] = json.loads(to_json(tiny()))["model"]
    del model["architecture"]
    return model | changes


@pytest.mark.parametrize(
    ("text", "subject", "words"),
    [
        (raw(batch_sise=3), "batch_sise", ["batch_size", "here.json"]),
        (raw(threads={"forwards": 1}), "threads.forwards", ["threads.forward"]),
        (raw(steps="10"), "steps", ['got "10"', "an integer"]),
        (raw(model=3), "model", ["a JSON object", "got 3"]),
        (raw(model={"context": 8}), "model.layers", ["got nothing in here.json"]),
        (raw(model=raw_model(architecture="mamba")), "model.architecture", ["one of gpt2, llama", 'got "mamba"']),
        (raw(model=raw_model(architecture=None)), "model.architecture", ["one of gpt2, llama", "got null"]),
        (raw(model=raw_model(tied=True)), "model.tied", ["gpt2 in here.json", "model.architecture=llama"]),
        (raw(model=raw_model(rotary={})), "model.rotary", ["gpt2 in here.json", "model.architecture=llama"]),
        (raw(model=raw_model(architecture="llama", rotary=3)), "model.rotary", ["a JSON object"]),
        (
            raw(model=raw_model(architecture="llama", layers_without_rotary=["a"])),
            "model.layers_without_rotary",
            ["a list of integers"],
        ),
        ('{"name": "x"}', "model", ["got nothing in here.json"]),
        ("[1]", "here.json", ["a JSON object"]),
        ('{"name": ', "here.json", ["JSON"]),
        ("", "here.json", ["JSON"]),
    ],
)
def test_invalid_files_are_rejected(text: str, subject: str, words: list[str]) -> None:
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


def test_configurations_are_immutable() -> None:
    with pytest.raises(AttributeError, match=re.escape("immutable")):
        tiny().steps = 3  # type: ignore[misc]


def test_reading_a_configuration_loads_no_numba() -> None:
    program = (
        "import sys, threadloom.stages.resolve as room; room.load_config('small'); sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_settings_that_are_not_utf8_are_rejected_by_name() -> None:
    """Arguments of the command line have undecodable bytes as lone surrogates."""
    named = apply_overrides(load_config("nanogpt-cpu"), ["name=caf\udce9"])
    with pytest.raises(ConfigError, match=r"^name: expected text in UTF-8, got caf\\xe9"):
        validate(named)
    with pytest.raises(ConfigError, match="steps: expected an integer"):
        apply_overrides(named, ["steps=\udce9"])
    assert apply_overrides(named, ["data.text=caf\udce9"]).data.text == ("caf\udce9",)
    assert apply_overrides(named, ['data.text=["caf\udce9"]']).data.text == ("caf\udce9",)
