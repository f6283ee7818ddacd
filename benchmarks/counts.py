"""Instructions of an update, counted and not timed: `python -m benchmarks.counts`, where there is valgrind.

Seconds are noisy on a machine that one shares; a count of callgrind's is the same each time, so it shows what a change
costs that no clock resolves. Callgrind knows AVX2 and not AVX-512, so the kernels are compiled for AVX2 here, in the
process that counts and outside: a count is to be compared with an earlier one, not with the time of an update.

The stages run one after another in one thread (`stages.training.sequential`). Callgrind looks away while the process
starts, and is told from inside of it, by ``callgrind_control``, when the updates begin and end; what that telling takes
is counted by itself and taken off. What is left is told apart by whose code it is.
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

from benchmarks.throughput import RANDOM_VOCABULARY
from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.console import module_command
from threadloom.stages.resolve import load_config, resolve, resolved_from_json, to_json

KERNELS, INTERPRETER, OTHERS = "compiled kernels", "the interpreter", "libraries"
COSTS = tuple("0123456789+-*")
"""How a line of a profile begins that says where something was spent, and how much."""
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
        elif line.startswith(COSTS):
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


def train(config: ResolvedConfig, updates: int, counted: bool) -> None:
    """Make an update, and then, if they are `counted`, so many that callgrind writes a profile of."""
    from threadloom.stages.data import random_batches
    from threadloom.stages.resolve import gemm_settings
    from threadloom.stages.training import Training, compile_kernels, replay

    compile_kernels(lambda _: None, config.precision)
    config = msgspec.structs.replace(config, steps=1 + updates)
    with gemm_settings(config):
        made = replay(Training(config, random_batches(config)))
        next(made)
        if not counted:
            return
        _tell("--instr=on")
        _tell("--dump=before")
        for _ in range(updates):
            next(made)
        _tell("--dump=updates")
        _tell("--dump=nothing")
        _tell("--instr=off")


def _tell(what: str) -> None:
    """Tell callgrind, under which this process runs, to do something."""
    subprocess.run(["callgrind_control", what, str(os.getpid())], check=True, stdout=subprocess.DEVNULL)


def count(config: ResolvedConfig, updates: int) -> Counter[str]:
    """Return the instructions of so many updates, by whose they are (RuntimeError)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        done = _child(valgrind, config, updates)
        profiles = [Path(f"{out}.{number}") for number in (2, 3)]  # the first was written before the updates
        if done.returncode or not all(profile.exists() for profile in profiles):
            raise RuntimeError(f"valgrind ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        wanted, telling = (count_by_object(profile.read_text().splitlines()) for profile in profiles)
    parts: Counter[str] = Counter()
    for path, instructions in wanted.items():
        parts[whose(path)] += instructions - telling[path]
    return parts


def _child(before: list[str], config: ResolvedConfig, updates: int) -> subprocess.CompletedProcess[str]:
    mode = "counted" if before else "plain"
    command = [*before, *module_command("benchmarks.counts", "--updates", str(updates), "--train", mode)]
    return subprocess.run(
        command, input=to_json(config), env=os.environ | AVX2, text=True, capture_output=True, check=False
    )


@click.command()
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, help="The configuration.")
@click.option("--precision", default=Precision.FLOAT32.value, show_default=True, help="Of activations and products.")
@click.option("--updates", default=1, show_default=True, help="Updates that are counted.")
@click.option("--train", "child", hidden=True, help="Make updates, counted or not; the configuration is read.")
def main(name: str, precision: str, updates: int, child: str | None) -> None:
    """Count the instructions of an update with valgrind: minutes, for a small model."""
    if child is not None:
        train(resolved_from_json(sys.stdin.read()), updates, child == "counted")
        return
    if not shutil.which("valgrind"):
        raise click.ClickException("valgrind is needed and is not installed (Debian's package: valgrind)")
    config = load_config(name)
    config = msgspec.structs.replace(config, precision=Precision(precision))
    config = resolve(config, cores=1, vocabulary=None if config.model.vocab_size else RANDOM_VOCABULARY)
    console = Console()
    console.print("compiling the kernels for AVX2 ...")
    warm = _child([], config, 1)  # compiling under valgrind would take an hour
    if warm.returncode:
        raise click.ClickException(f"training ended with status {warm.returncode}:\n{warm.stderr[-2000:]}")
    console.print("counting ...")
    try:
        found = count(config, updates)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    console.print(
        table_of(found, updates, f"{name}, {precision}, one update of {config.sequences * config.model.context} tokens")
    )


def table_of(found: Counter[str], updates: int, title: str) -> Table:
    """Return the counts of one update as a table."""
    table = Table(title=title)
    table.add_column("whose code")
    for heading in ("million instructions", "share"):
        table.add_column(heading, justify="right")
    whole = max(found.total(), 1)
    for part in (KERNELS, INTERPRETER, OTHERS, "in all"):
        number = whole if part == "in all" else found[part]
        table.add_row(part, f"{number / updates / 1e6:,.2f}", f"{100 * number / whole:.2f} %")
    return table


if __name__ == "__main__":
    main()
