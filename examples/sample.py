"""Sampling from a trained model in Python.

    python -m examples.sample [RUN [PROMPT]]

RUN is a run directory, a checkpoint, or the folder of a model in Hugging Face's layout. Without it, a small model is
trained for some seconds first.
"""

import sys
import tempfile
import time
from pathlib import Path

import msgspec

from threadloom import Config, GenerationLimits, SamplingSettings, generate_text, load_config, load_model, train
from threadloom.stages.console import configure, prepare_streams


def print_continuation(run: Path, prompt: str | None = None, tokens: int = 200, seed: int = 1) -> str:
    """Generate a continuation of the prompt with the newest model of a run; print and return it, with the speed."""
    model = load_model(run)
    settings = SamplingSettings(temperature=0.8, top_k=40)
    prompt_ids = model.default_prompt() if prompt is None else model.tokenizer.encode(prompt)
    list(generate_text(model, prompt_ids, settings, GenerationLimits(2), seed))  # compiles or loads the kernels
    limits = GenerationLimits(tokens, ignore_eos=True)
    begin = time.perf_counter()
    text = "".join(generate_text(model, prompt_ids, settings, limits, seed))
    seconds = time.perf_counter() - begin
    print((prompt or "") + text)
    print(f"\n{model.path}: {tokens} tokens, {tokens / seconds:,.0f} per second")
    return text


def main(run: Path | None = None, prompt: str | None = None, steps: int = 200, config: Config | None = None) -> str:
    """Sample from a run, or from a model trained for this example."""
    if run is not None:
        return print_continuation(run, prompt)
    with tempfile.TemporaryDirectory() as folder:
        config = msgspec.structs.replace(config or load_config("nanogpt-cpu"), steps=steps)
        outcome = train(config, Path(folder) / "run")
        return print_continuation(outcome.run.path, prompt)


if __name__ == "__main__":
    prepare_streams()  # characters that the console lacks are replaced
    configure()
    arguments = sys.argv[1:]
    main(Path(arguments[0]) if arguments else None, arguments[1] if len(arguments) > 1 else None)
