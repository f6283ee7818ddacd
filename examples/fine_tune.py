"""Fine-tuning a small Llama on a text of one's own, with a sample before and after.

    python -m examples.fine_tune [TEXT ...] [--model FOLDER] [--steps N] [--lora RANK]

FOLDER is a model in Hugging Face's layout, or a run. Without it, a Llama of a million parameters is made on the spot:
its tokenizer and its weights learn the source of Python's standard library for about a minute. Without TEXT, it is then
taught English: the chapters of Python's language reference that `help()` shows. With RANK, the model is frozen, and
low-rank adapters of its linear layers learn the text.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import msgspec

from threadloom import Config, GenerationLimits, SamplingSettings, generate_text, load_model, train
from threadloom.stages.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LlamaConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerKind,
)
from threadloom.stages.console import configure, prepare_streams
from threadloom.stages.inference import evaluate_text
from threadloom.stages.resolve import apply_overrides, fine_tuning_config, with_adapters

TINY_LLAMA = Config(
    name="tiny-llama",
    model=LlamaConfig(vocab_size=2048, context=128, layers=4, heads=4, kv_heads=2, channels=128, tied=True),
    data=DataConfig(tokenizer=TokenizerKind.BPE),
    batch_size=8,
    steps=500,
    optimizer=OptimizerConfig(lr=2e-3, beta2=0.99),
    schedule=ScheduleConfig(warmup=20, min_lr=2e-4),
    evaluation=EvaluationConfig(interval=0),
    checkpoint=CheckpointConfig(interval=0),
    pictures=False,
)
"""The model that is made on the spot, and its training."""

FINE_TUNING = ("optimizer.lr=1e-3", "evaluation.interval=0", "pictures=false")
"""Settings of the second training. A model of this size takes a larger learning rate than the default, that of models a
hundred times as large."""


def sample(model: Path, prompt: str, tokens: int = 60) -> str:
    """Return a prompt with its continuation by the newest model of a run, or by a model in Hugging Face's layout."""
    opened = load_model(model)
    settings, limits = SamplingSettings(temperature=0.7, top_k=40), GenerationLimits(tokens)
    return prompt + "".join(generate_text(opened, opened.prompt(prompt), settings, limits, seed=1))


def report(when: str, model: Path, texts: Sequence[str], prompt: str) -> float:
    """Print a sample, and the loss on the texts; return the loss."""
    score = evaluate_text(model, tuple(texts))
    print(f"--- {when}: {score.bits_per_character:.2f} bits per character of the text\n{sample(model, prompt)}\n")
    return score.loss


def main(
    texts: Sequence[str] = (),
    model: Path | None = None,
    steps: int = 200,
    lora: int | None = None,
    prompt: str = "The object",
    pretraining: Config = TINY_LLAMA,
) -> tuple[float, float]:
    """Fine-tune a model on texts, or adapters of rank `lora`; return the loss on the texts before and after."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not texts:
            (folder / "topics.txt").write_text("\n".join(topics.values()), encoding="utf-8")
            texts = [str(folder / "topics.txt")]
        if model is None:
            model = train(pretraining, folder / "pretrained").run.path
        before = report("before", model, texts, prompt)
        config = fine_tuning_config(model)
        config = apply_overrides(with_adapters(config, lora, own_rate=True) if lora else config, FINE_TUNING)
        data = msgspec.structs.replace(config.data, text=tuple(texts))
        outcome = train(msgspec.structs.replace(config, data=data, steps=steps), folder / "fine-tuned")
        return before, report("after", outcome.run.path, texts, prompt)


if __name__ == "__main__":
    prepare_streams()  # characters that the console lacks are replaced
    configure()
    parser = argparse.ArgumentParser(description="Fine-tune a small Llama on a text, with a sample before and after.")
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--model", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lora", type=int, metavar="RANK")
    arguments = parser.parse_args()
    main(arguments.texts, arguments.model, arguments.steps, arguments.lora)
