"""Instructions of an update, counted and not timed: `python -m benchmarks.counts`, where there is valgrind.

Seconds are noisy on a machine that one shares; a count of callgrind's is the same each time, so it shows what a change
costs that no clock resolves. Callgrind knows AVX2 and not AVX-512, so the kernels are compiled for AVX2 here, in the
process that counts and outside: a count is to be compared with an earlier one, not with the time of an update.

The stages run one after another in one thread (`stages.replay`). What one update takes is the difference of two
processes that make a different number of them, so that start-up drops out. It is told apart by whose code it is.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from stages.config import Config, Precision, from_json, load_config, resolve, to_json

ROOT = Path(__file__).parents[1]
KERNELS, INTERPRETER, OTHERS = "compiled kernels", "the interpreter", "libraries"
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse2,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
"""The environment of the processes that count: code that valgrind can run, and nothing drawn by lot."""


def count_by_object(lines: Iterable[str]) -> Counter[str]:
    """Return the instructions in a profile of callgrind's by the object file that they belong to, calls not included.

    The format: "The Callgrind Format Specification", section 2, in Valgrind's manual. Names are abbreviated after their
    first use, ``ob=(2) /lib/libc.so`` and then ``ob=(2)``; the line after a ``calls=`` is the cost of what was called,
    which is counted where it was spent.
    """
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    place, skips = "", False
    for line in lines:
        if line.startswith("ob="):
            number, _, name = line[3:].strip().partition(" ")
            place = names.setdefault(number, name)
        elif line.startswith("cob="):
            number, _, name = line[4:].strip().partition(" ")
            names.setdefault(number, name)
        elif line.startswith("calls="):
            skips = True
        elif line[:1].isdigit() or line[:1] in "+-*":
            if not skips:
                found[place] += int(line.split()[1])
            skips = False
    return found


def whose(path: str) -> str:
    """Return whose code an object file is: what was compiled in memory belongs to none."""
    if path in ("", "???"):
        return KERNELS
    name = Path(path).name
    return INTERPRETER if name.startswith(("python", "libpython")) else OTHERS


def train(config: Config, updates: int) -> None:
    """Make so many updates in this thread."""
    from stages.data import random_batches
    from stages.numerics import numerics
    from stages.replay import replay
    from stages.training import Training
    from stages.warmup import compile_kernels

    compile_kernels(lambda _: None, config.precision)
    config = msgspec.structs.replace(config, steps=updates)
    with numerics(config):
        for _ in replay(Training(config, random_batches(config))):
            pass


def count(config: Config, updates: int) -> Counter[str]:
    """Return the instructions, by whose they are, of a process that makes so many updates (RuntimeError)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        valgrind = ["valgrind", "--tool=callgrind", "--smc-check=all-non-file", f"--callgrind-out-file={out}"]
        done = _child(valgrind, config, updates)
        if done.returncode or not out.exists():
            raise RuntimeError(f"valgrind ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        with out.open() as lines:
            objects = count_by_object(lines)
    parts: Counter[str] = Counter()
    for path, instructions in objects.items():
        parts[whose(path)] += instructions
    return parts


def _child(before: list[str], config: Config, updates: int) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "benchmarks.counts", "--train", str(updates)]
    environment = os.environ | AVX2
    return subprocess.run(
        command, input=to_json(config), cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )


@click.command()
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, help="The configuration.")
@click.option("--precision", default=Precision.FLOAT32.value, show_default=True, help="Of activations and products.")
@click.option("--updates", default=2, show_default=True, help="Updates that are counted.")
@click.option("--train", "child", type=int, hidden=True, help="Make so many updates; the configuration is read.")
def main(name: str, precision: str, updates: int, child: int | None) -> None:
    """Count the instructions of an update with valgrind: a minute or two."""
    if child is not None:
        train(from_json(sys.stdin.read()), child)
        return
    if not shutil.which("valgrind"):
        raise click.ClickException("valgrind is needed and is not installed (Debian's package: valgrind)")
    model = load_config(name)
    config = msgspec.structs.replace(
        model,
        precision=Precision(precision),
        model=msgspec.structs.replace(model.model, vocab_size=model.model.vocab_size or 65),
    )
    config = resolve(config, cores=1)
    console = Console()
    console.print("compiling the kernels for AVX2 ...")
    warm = _child([], config, 1)  # compiling under valgrind would take an hour
    if warm.returncode:
        raise click.ClickException(f"training ended with status {warm.returncode}:\n{warm.stderr[-2000:]}")
    console.print("counting ...")
    short, long = count(config, 1), count(config, 1 + updates)
    table = Table(title=f"{name}, {precision}, one update of {config.sequences * config.model.context} tokens")
    for heading in ("whose code", "million instructions", "share"):
        table.add_column(heading, justify="left" if heading == "whose code" else "right")
    parts = {part: (long[part] - short[part]) / updates / 1e6 for part in (KERNELS, INTERPRETER, OTHERS)}
    for part, millions in [*parts.items(), ("in all", sum(parts.values()))]:
        table.add_row(part, f"{millions:,.2f}", f"{100 * millions / sum(parts.values()):.2f} %")
    console.print(table)


if __name__ == "__main__":
    main()
