"""Checks of values against limits and against one another."""

import pytest

from tests.stages.resolve.support import refusal, tiny
from threadloom.stages.resolve.loading import (
    apply_overrides,
)
from threadloom.stages.resolve.resolution import resolve


@pytest.mark.parametrize(
    ("overrides", "subject", "words"),
    [
        (["model.channels=7"], "model.channels", ["model.heads = 2", "[1, 7]"]),
        (["model.architecture=llama", "model.kv_heads=0"], "model.kv_heads", ["1 to 1024"]),
        (["model.architecture=llama", "model.head_size=3"], "model.head_size", ["an even number"]),
        (["model.architecture=llama", "model.epsilon=0"], "model.epsilon", []),
        (["model.architecture=llama", "model.rotary.theta=0"], "model.rotary.theta", []),
        (["model.architecture=llama", "model.rotary.dimensions=-2"], "model.rotary.dimensions", []),
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
        (["optimizer.rotation=-1"], "optimizer.rotation", []),
        (
            ["optimizer.rotation=9", "init=x", "lora.rank=2", 'lora.targets=["all-linear"]'],
            "optimizer.rotation",
            ["lora"],
        ),
        (["optimizer.rotation=9", "embedding.rank=2"], "optimizer.rotation", ["0 with embedding.rank"]),
        (["optimizer.rotation=9", "grown_from=x"], "optimizer.rotation", ["grown_from"]),
        (["optimizer.lr=1e400"], "optimizer.lr", []),
        (["schedule.min_lr=0.5"], "schedule.min_lr", ["optimizer.lr"]),
        (["schedule.warmup=5", "schedule.decay_steps=4"], "schedule.decay_steps", ["warmup = 5"]),
        (["data.train_fraction=1"], "data.train_fraction", []),
        (["data.tokenizer=bpe", "model.vocab_size=null"], "model.vocab_size", ["BPE"]),
    ],
)
def test_invalid_values_are_rejected_by_name(overrides: list[str], subject: str, words: list[str]) -> None:
    with refusal(subject, *words):
        resolve(apply_overrides(tiny(), overrides), 2)
