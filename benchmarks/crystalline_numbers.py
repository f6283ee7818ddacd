"""Arithmetic with clock features and with digits at places: `python -m benchmarks.crystalline_numbers`.

Two tasks, each with the plain embedding and with the options that are made for numbers:

- `modular`: a + b mod m, where every number is one token. Half of the pairs are the training text, the others are
  asked. Measured: the share of right answers, and the updates until 99 % are right.
- `addition`: sums of numbers of 1 to `DIGITS` digits, written with the last digit first, one token a digit. Asked are
  sums of numbers of one length, up to three digits longer than any in the text. Right means: every digit.
"""

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.crystalline import ONE_THREAD, QUIET
from threadloom.stages.config import InputError
from threadloom.stages.inference import Model, SamplingSettings, generate
from threadloom.stages.resolve import apply_overrides, load_config
from threadloom.stages.run import train
from threadloom.stages.storage import RunMode

MODULUS, DIGITS, LONGER = 59, 5, 3
QUESTIONS = 200
GREEDY = SamplingSettings(temperature=0.0)


class Question(NamedTuple):
    """A prompt and its answer, up to the end of the line."""

    prompt: str
    answer: str


class Task(NamedTuple):
    """A text to train on, and questions by group."""

    settings: tuple[str, ...]
    """Settings of every variant."""
    variants: dict[str, tuple[str, ...]]
    make: Callable[[int, Path], dict[str, list[Question]]]
    """Writes the training text of a seed to a folder, as text.txt, and returns the questions."""
    every: int
    """Updates between two checkpoints that are asked."""


class Outcome(NamedTuple):
    """The share of right answers of a group at each checkpoint."""

    task: str
    variant: str
    seed: int
    right: dict[str, list[float]]
    every: int
    """Updates between two checkpoints."""

    def updates_to(self, group: str, share: float) -> int | None:
        """Return the updates until a share of the answers is right; None if it never is."""
        found = next((n for n, value in enumerate(self.right[group], 1) if value >= share), None)
        return None if found is None else found * self.every


def make_modular(seed: int, folder: Path) -> dict[str, list[Question]]:
    """Write half of the pairs, repeated in random order, and a tokenizer in which every number is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*map(str, range(MODULUS)), "+", "=", ";"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=";"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    generator = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(MODULUS) for b in range(MODULUS)]
    order = generator.permutation(len(pairs))
    known, asked = order[: len(pairs) // 2], order[len(pairs) // 2 :]

    def question(index: int) -> Question:
        a, b = pairs[index]
        return Question(f"; {a} + {b} =", str((a + b) % MODULUS))

    lines = (question(index) for _ in range(40) for index in generator.permutation(known))
    (folder / "text.txt").write_text(" ".join(f"{line.prompt} {line.answer}" for line in lines))
    return {"held out": [question(index) for index in asked[:QUESTIONS]]}


def make_addition(seed: int, folder: Path) -> dict[str, list[Question]]:
    """Write sums with the last digit first."""
    generator = np.random.default_rng(seed)

    def number(digits: int) -> int:
        return int(generator.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))

    def question(first: int, second: int) -> Question:
        a, b = number(first), number(second)
        return Question(f"\n{str(a)[::-1]}+{str(b)[::-1]}=", str(a + b)[::-1])

    lengths = generator.integers(1, DIGITS + 1, (100_000, 2))
    lines = (question(int(first), int(second)) for first, second in lengths)
    (folder / "text.txt").write_text("".join(f"{line.prompt}{line.answer}" for line in lines))
    return {f"{n} digits": [question(n, n) for _ in range(QUESTIONS)] for n in range(2, DIGITS + LONGER + 1)}


TASKS = {
    "modular": Task(
        (
            "model.layers=1", "model.context=24", "batch_size=64", "steps=3000", "data.tokenizer=pretrained",
            "optimizer.weight_decay=1.0", "schedule.kind=constant",
        ),
        {
            "plain": (),
            "clocks of 10, 100, 1,000": ("embedding.layout=clock",),
            "clock of the modulus": ("embedding.layout=clock", f"embedding.periods=[{MODULUS}]"),
        },
        make_modular,
        250,
    ),
    "addition": Task(
        ("model.context=64", "batch_size=32", "steps=5000", "optimizer.lr=3e-3", "schedule.warmup=300"),
        {
            "plain": (),
            "digits at places": ("data.digits=abacus", "data.digit_places=20"),
            "digits at places, offsets": ("data.digits=abacus", "data.digit_places=20", "data.digit_offset=10"),
            "digits at places, offsets, shared rows": (
                "data.digits=abacus", "data.digit_places=20", "data.digit_offset=10", "embedding.layout=abacus",
            ),
        },
        make_addition,
        5000,
    ),
}  # fmt: skip


def right_answers(model: Model, questions: Sequence[Question]) -> float:
    """Return the share of the questions that the most likely tokens answer, up to the end of the line."""

    def answered(question: Question) -> bool:
        prompt = model.tokenizer.encode(question.prompt)
        wanted = question.answer
        ids = generate(model.weights, model.geometry, prompt, 2 * len(wanted) + 2, GREEDY, 0)
        text = ""
        for token in ids:
            text += model.tokenizer.decode_following([token])
            if text.strip() != text or len(text) > len(wanted) + 1:
                break
        return text.split() == [wanted] if "\n" in text else text.strip() == wanted

    return mean(map(answered, questions))


def measured(task: str, variant: str, seed: int) -> Outcome:
    """Train one variant and ask every checkpoint. Raises ValueError for a variant that the program refuses."""
    chosen = TASKS[task]
    with tempfile.TemporaryDirectory(prefix="crystalline-") as name:
        folder = Path(name)
        questions = chosen.make(seed, folder)
        settings = (*QUIET, *ONE_THREAD, *chosen.settings, *chosen.variants[variant], "precision=bf16", f"seed={seed}")
        settings += (f"data.text=[{json.dumps(str(folder / 'text.txt'))}]", "data.train_fraction=0.97")
        settings += (f"checkpoint.interval={chosen.every}", "checkpoint.keep=0", "checkpoint.copies=true")
        if (folder / "tokenizer.json").exists():
            settings += (f"data.tokenizer_path={folder / 'tokenizer.json'}",)
        try:
            train(apply_overrides(load_config("nanogpt-cpu"), settings), folder / "run", RunMode.NEW, tuned=False)
        except InputError as error:
            raise ValueError(f"{task}, {variant}: {error}") from None
        models = [Model.open(path) for path in checkpoints(folder / "run")]
        right = {group: [right_answers(model, asked) for model in models] for group, asked in questions.items()}
    return Outcome(task, variant, seed, right, chosen.every)


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run in the order of their updates."""
    return sorted((run / "checkpoints").iterdir(), key=lambda path: int("".join(filter(str.isdigit, path.name))))


def in_processes(jobs: Sequence[tuple[str, str, int]], workers: int) -> Iterator[Outcome]:
    """Yield the outcomes of trainings, each in a process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(measured, *job) for job in jobs]):
            yield future.result()


def table_of(task: str, outcomes: Sequence[Outcome]) -> Table:
    """Return the mean share of right answers at the end, by variant and group."""
    groups = list(outcomes[0].right)
    table = Table(title=task)
    for column in ("variant", *groups, "updates to 99 % of the first group", "seeds"):
        table.add_column(column)
    for variant in TASKS[task].variants:
        found = [outcome for outcome in outcomes if outcome.variant == variant]
        if not found:
            continue
        updates = sorted(str(outcome.updates_to(groups[0], 0.99) or "never") for outcome in found)
        shares = [f"{mean(outcome.right[group][-1] for outcome in found):.3f}" for group in groups]
        table.add_row(variant, *shares, ", ".join(updates), str(len(found)))
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Default: all.")
@click.option("--seeds", default="2,3,4", show_default=True)
@click.option("--workers", default=2, show_default=True, help="Trainings at a time, of one thread each.")
def main(tasks: tuple[str, ...], seeds: str, workers: int) -> None:
    """Measure what clock features and digits at places do for arithmetic."""
    console = Console()
    for task in tasks or tuple(TASKS):
        jobs = [(task, variant, int(seed)) for seed in seeds.split(",") for variant in TASKS[task].variants]
        outcomes = []
        try:
            for outcome in in_processes(jobs, workers):
                outcomes.append(outcome)
                last = {group: round(values[-1], 3) for group, values in outcome.right.items()}
                console.print(f"{len(outcomes)}/{len(jobs)} {task}, {outcome.variant}, seed {outcome.seed}: {last}")
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        console.print(table_of(task, outcomes))


if __name__ == "__main__":
    main()
