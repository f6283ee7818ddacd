"""A run with `optimizer.lr=auto`: its config.json, its start lines, and its continuation with more updates."""

from pathlib import Path

from loguru import logger

from tests.stages.support import TINY
from threadloom.stages.config import Config
from threadloom.stages.resolve import RATE_RULE, apply_overrides
from threadloom.stages.run import saved_config, train
from threadloom.stages.storage import RunMode


def test_a_resumed_run_keeps_the_rate_that_the_rule_chose(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("one two three four five six seven " * 100)
    opened = ("optimizer.lr=auto", "schedule.warmup=auto", "schedule.min_lr=0", "schedule.kind=constant")
    fixed = (f'data.text=["{text}"]', "model.vocab_size=null", "pictures=false", "trace.batches=0", "steps=7")
    config = apply_overrides(TINY, (*opened, *fixed))
    sizes = config.model.channels, config.sequences * config.model.context
    begun, lines = _trained(config, out, RunMode.NEW)
    assert (begun.optimizer.lr, begun.schedule.warmup) == (RATE_RULE.rate(*sizes, 7), 1)
    assert any("learning rate" in line and "by the rule" in line for line in lines)
    resumed, lines = _trained(apply_overrides(config, ["steps=20"]), out, RunMode.RESUME)
    assert resumed.steps == 20
    assert (resumed.optimizer.lr, resumed.schedule.warmup) == (begun.optimizer.lr, 1)
    assert RATE_RULE.rate(*sizes, 20) != begun.optimizer.lr
    assert any("as when the run began" in line for line in lines)


def _trained(config: Config, out: Path, mode: RunMode) -> tuple[Config, list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO", format="{message}")
    try:
        train(config, out, mode, tuned=False)
    finally:
        logger.remove(sink)
    return saved_config(out), lines
