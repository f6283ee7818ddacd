"""Training a Llama from nothing on the source of Python's standard library.

    python -m examples.train_llama [STEPS [RUN]]

The same as `threadloom train --config llama-small --steps STEPS --out RUN`: 15.7 million parameters, a byte-pair
tokenizer that is trained on the same text.
"""

import sys
from pathlib import Path

from threadloom import Config, GenerationLimits, SamplingSettings, generate_text, load_config, load_model, train
from threadloom.stages.resolve import apply_overrides


def main(steps: int = 300, out: str = "runs/llama", config: Config | None = None) -> float | None:
    """Train, print a sample, and return the validation loss."""
    changes = [f"steps={steps}", "schedule.warmup=20", "evaluation.final_batches=20", "precision=auto"]
    outcome = train(apply_overrides(config or load_config("llama-small"), changes), Path(out))
    model = load_model(outcome.run.path)
    settings, limits = SamplingSettings(temperature=0.8, top_k=40), GenerationLimits(100)
    text = "".join(generate_text(model, model.prompt("def "), settings, limits, seed=1))
    print(f"def {text}\nvalidation loss {outcome.val_loss:.4f} after {outcome.step} updates")
    return outcome.val_loss


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, sys.argv[2] if len(sys.argv) > 2 else "runs/llama")
