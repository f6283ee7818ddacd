"""Runs that train low-rank adapters of an existing model."""

import msgspec

from threadloom.stages.config import ALL_LINEAR, Config, ConfigError, LoraConfig
from threadloom.stages.resolve.fine_tuning_rate import fine_tuning_rate


def with_adapters(config: Config, rank: int, *, own_rate: bool = True) -> Config:
    """Return the configuration of a run that trains adapters of all linear layers.

    `own_rate` sets the learning rate of adapters (`fine_tuning_rate`). Raises ConfigError for a run that starts from
    some.
    """
    if config.lora.init:
        raise ConfigError(
            "--lora",
            expected="new adapters",
            got=f"those in {config.lora.init}, of rank {config.lora.rank}",
            cause="--init is a folder of adapters, or a run with adapters",
            hint="leave --lora out to train those; or merge them first: threadloom merge RUN OUT",
        )
    rate = fine_tuning_rate(config.model.channels, adapters=True)
    optimizer = msgspec.structs.replace(config.optimizer, lr=rate) if own_rate else config.optimizer
    lora = LoraConfig(rank=rank, targets=(ALL_LINEAR,))
    return msgspec.structs.replace(config, lora=lora, optimizer=optimizer)


def require_model_under_adapters(config: Config) -> None:
    """Raise ConfigError for adapters without a model that the run starts from."""
    if config.lora.rank and not config.init:
        raise ConfigError(
            "lora.rank",
            expected="a run that starts from a model, whose weights are frozen under the adapters",
            got=f"lora.rank = {config.lora.rank} without one",
            hint="pass the folder of a model with --init; or set lora.rank=0 to train all weights",
        )
