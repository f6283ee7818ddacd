"""The learning rate and the warm-up that a configuration leaves open (`auto`).

A model that is trained from random weights gets the peak learning rate of a rule,

    lr = scale · (width / 128)^b · (tokens / 1024)^c · (updates / 1000)^d

with the channels of the model, the tokens of a batch and the updates until the decay ends. `RATE_RULE` is the
least-squares fit of log lr to the best rates of small models of characters, GPT-2s and a Llama, and of three of the
configurations with a BPE vocabulary, each the minimum of a parabola through the losses on a grid of learning rates
(`python -m benchmarks.learning_rates`; docs/performance.md, "Learning rate", has the table of the fitted models and of
others that check the rule). They were trained with AdamW (beta2 0.99, the configurations 0.95; weight decay 0.1), a
warm-up of `WARMUP_SHARE` and a cosine to a tenth of the peak. Fine-tuning has a rule of its own
(`stages.resolve.fine_tuning_rate`).
"""

from dataclasses import dataclass

import msgspec

from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.resolve.fine_tuning_rate import FINE_TUNING_WARMUP, fine_tuning_rate

WARMUP_SHARE = 0.15
"""Share of the updates that is warm-up, as in the fit."""
_DELAYED_SHARES = (WARMUP_SHARE, 0.25, 0.5)
"""The same for delays of 0, 1, and 2 or more: a delayed gradient is unstable at a rate that others bear, until the
sharpest directions have flattened (docs/performance.md, "Delay")."""

_WIDTH, _TOKENS, _UPDATES = 128, 1024, 1000
"""The training whose learning rate is `RateRule.scale`."""


@dataclass(frozen=True)
class RateRule:
    """A power law for the peak learning rate, and the ranges of the models that it was fitted on.

    Outside of the ranges it goes on only where that lowers the rate: a model narrower than the fitted ones counts as
    wide as the narrowest, and more tokens or updates than in the fit count as the most of them.
    """

    scale: float
    """Learning rate at width 128, 1024 tokens a batch and 1000 updates."""
    width: float
    """Exponent of the channels."""
    tokens: float
    """Exponent of the tokens of a batch."""
    updates: float
    """Exponent of the number of updates."""
    widths: tuple[int, int]
    batches: tuple[int, int]
    lengths: tuple[int, int]

    def rate(self, channels: int, tokens: int, updates: int) -> float:
        """Return the peak learning rate of a training, with three digits."""
        width, batch, _ = self.relative(max(channels, self.widths[0]), min(tokens, self.batches[1]), updates)
        return float(f"{self.scale * width**self.width * batch**self.tokens * self.of_length(updates):.3g}")

    def of_length(self, updates: int) -> float:
        """Return the factor of the rate for a number of updates."""
        return float((min(updates, self.lengths[1]) / _UPDATES) ** self.updates)

    @staticmethod
    def relative(channels: int, tokens: int, updates: int) -> tuple[float, float, float]:
        """Return the sizes of a training as multiples of those at which the rate is `scale`."""
        return channels / _WIDTH, tokens / _TOKENS, updates / _UPDATES

    def covers(self, channels: int, tokens: int, updates: int) -> bool:
        """Return True for a training inside of the ranges of the fit."""
        pairs = (channels, self.widths), (tokens, self.batches), (updates, self.lengths)
        return all(low <= value <= high for value, (low, high) in pairs)


RATE_RULE = RateRule(4.43e-3, -1.0, 0.2, 0.28, widths=(32, 384), batches=(256, 4096), lengths=(150, 3000))


def rate_and_warmup(config: Config) -> tuple[float, int]:
    """Return `optimizer.lr` and `schedule.warmup`, chosen if they are open."""
    lr, warmup, length = config.optimizer.lr, config.schedule.warmup, _length(config)
    if lr is None and config.init:
        lr = fine_tuning_rate(config.model.channels, adapters=config.lora.rank > 0)
    if lr is None:
        lr = RATE_RULE.rate(config.model.channels, config.sequences * config.model.context, length)
    if warmup is None:
        warmup = FINE_TUNING_WARMUP if config.init else round(_DELAYED_SHARES[min(config.delay, 2)] * length)
        warmup = min(warmup, length, config.schedule.decay_steps or length)
    return lr, warmup


def with_learning_rate(config: Config) -> Config:
    """Return the configuration with a number for `optimizer.lr` and `schedule.warmup`; explicit ones are kept."""
    return _with(config, *rate_and_warmup(config))


def with_saved_rate(config: Config, saved: Config) -> Config:
    """Return the configuration of a resumed run, whose open learning rate and warm-up are those of its beginning."""
    lr, warmup = config.optimizer.lr, config.schedule.warmup
    return _with(
        config,
        saved.optimizer.lr if lr is None else lr,
        saved.schedule.warmup if warmup is None else warmup,
    )


def rate_summary(asked: Config, config: ResolvedConfig, *, resumed: bool) -> str:
    """Return a line on the learning rate of a run and where it comes from; `asked` is the unresolved configuration."""
    lr, warmup = config.optimizer.lr, config.schedule.warmup
    line = f"learning rate: {lr:g}, {_source(asked, config, resumed=resumed)}"
    if not warmup:
        return f"{line}; no warm-up"
    chosen = " of the rule" if asked.schedule.warmup is None and not (config.init or resumed) else ""
    return f"{line}; warm-up{chosen}: {warmup:,} updates"


def _source(asked: Config, config: ResolvedConfig, *, resumed: bool) -> str:
    if resumed:
        return "as when the run began"
    if asked.optimizer.lr is not None:
        return "as configured"
    if config.init:
        kind = "adapters of a model" if config.lora.rank else "a model"
        return f"the default for fine-tuning {kind} of width {config.model.channels}"
    sizes = config.model.channels, config.sequences * config.model.context, _length(config)
    line = "by the rule for width {}, batches of {:,} tokens and {:,} updates".format(*sizes)
    return line if RATE_RULE.covers(*sizes) else f"{line}, outside of the range of its fit"


def _length(config: Config) -> int:
    """Return the updates until the learning rate has decayed."""
    schedule = config.schedule
    return (schedule.decay_steps if schedule.kind.ends else None) or config.steps


def _with(config: Config, lr: float | None, warmup: int | None) -> Config:
    return msgspec.structs.replace(
        config,
        optimizer=msgspec.structs.replace(config.optimizer, lr=lr),
        schedule=msgspec.structs.replace(config.schedule, warmup=warmup),
    )
