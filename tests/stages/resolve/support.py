"""Configurations for tests, and the expectation of a ConfigError."""

import msgspec
import pytest
from hypothesis import strategies as st

from threadloom.stages.config import (
    Config,
    ConfigError,
    DataConfig,
    Gpt2Config,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleKind,
    ThreadsConfig,
)


def tiny(**changes: object) -> Config:
    base = Config(
        name="tiny",
        model=Gpt2Config(vocab_size=11, context=8, layers=1, heads=2, channels=6),
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
        lambda vocab, context, layers, heads, width: Gpt2Config(
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
