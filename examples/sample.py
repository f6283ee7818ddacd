"""Text from a trained model, from Python.

    python -m examples.sample [RUN [PROMPT]]

RUN is a run directory, a checkpoint, or a GPT-2 folder in Hugging Face's layout. Without one, a small model is trained
for some seconds first.
"""

import sys
import tempfile
import time
from pathlib import Path

import msgspec

from threadloom.stages.config import Config
from threadloom.stages.console import configure
from threadloom.stages.inference import Model, SamplingSettings, generate
from threadloom.stages.resolve import load_config
from threadloom.stages.run import train


def sample(run: Path, prompt: str | None = None, tokens: int = 200, seed: int = 1) -> str:
    """Return a continuation of the prompt by the newest model of a run, and print how fast it came."""
    model = Model.open(run)
    settings = SamplingSettings(temperature=0.8, top_k=40)
    prompt_ids = model.default_prompt() if prompt is None else model.tokenizer.encode(prompt)
    list(generate(model.weights, model.geometry, prompt_ids, 2, settings, seed))  # loads the kernels
    begin = time.perf_counter()
    ids = list(generate(model.weights, model.geometry, prompt_ids, tokens, settings, seed))
    seconds = time.perf_counter() - begin
    text = model.tokenizer.decode(ids)
    print((prompt or "") + text)
    print(f"\n{model.path}: {len(ids)} tokens, {len(ids) / seconds:,.0f} a second")
    return text


def main(run: Path | None = None, prompt: str | None = None, steps: int = 200, config: Config | None = None) -> str:
    """Sample from a run, or from a model trained for the occasion."""
    if run is not None:
        return sample(run, prompt)
    with tempfile.TemporaryDirectory() as folder:
        config = msgspec.structs.replace(config or load_config("nanogpt-cpu"), steps=steps)
        outcome = train(config, Path(folder) / "run")
        return sample(outcome.run.path, prompt)


if __name__ == "__main__":
    configure()
    arguments = sys.argv[1:]
    main(Path(arguments[0]) if arguments else None, arguments[1] if len(arguments) > 1 else None)
