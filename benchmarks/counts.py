"""Instruction counts of an update, measured by valgrind: `python -m benchmarks.counts`.

Times are noisy on a shared machine; a count of callgrind is reproducible, so it shows costs of a change that no clock
resolves. Callgrind supports AVX2 but not AVX-512, so the kernels are compiled for AVX2: a count is comparable with an
earlier count, not with the time of an update.

The stages run one after another in one thread (`stages.training.sequential`). Counting is off while the process starts;
``callgrind_control``, run from inside the process, switches it on for the updates. The overhead of callgrind_control is
measured and subtracted; the rest is attributed by object file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from threadloom.stages.config import Precision, ResolvedConfig
from threadloom.stages.console import module_command
from threadloom.stages.resolve import load_config, resolve, resolved_from_json, to_json
from threadloom.stages.training import RANDOM_VOCABULARY

KERNELS, INTERPRETER, OTHERS = "compiled kernels", "the interpreter", "libraries"
COSTS = tuple("0123456789+-*")
"""First characters of the lines of a profile that contain a position and a cost."""


class ChildMode(Enum):
    """The task of a child process; the value is its command-line argument."""

    WARM_UP = "warm-up"  # compiles the kernels and makes one update
    COUNT = "count"  # under callgrind


AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse2,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
"""Environment of the counting processes: code that valgrind can run, and no randomness."""


def count_by_object(lines: Iterable[str]) -> Counter[str]:
    """Return the instructions in a callgrind profile by object file, without those of called functions.

    The format is described in Valgrind's manual, "The Callgrind Format Specification", section 2. Names are abbreviated
    after their first use: ``ob=(2) /lib/libc.so``, then ``ob=(2)``. The line after ``calls=`` is the inclusive cost of
    the call, which is already counted in the called function.
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


def classify_object(path: str) -> str:
    """Classify an object file as kernels (compiled in memory, without a file), interpreter or libraries."""
    if path in ("", "???"):
        return KERNELS
    name = Path(path).name
    return INTERPRETER if name.startswith(("python", "libpython")) else OTHERS


def train_counted(config: ResolvedConfig, updates: int, mode: ChildMode) -> None:
    """Make one update, and in mode COUNT `updates` more, of which callgrind writes a profile."""
    from threadloom.stages.data import RandomTokens
    from threadloom.stages.resolve import gemm_settings
    from threadloom.stages.training import Training, compile_kernels_of, replay

    compile_kernels_of(config, lambda _: None)
    config = msgspec.structs.replace(config, steps=1 + updates)
    with gemm_settings(config):
        made = replay(Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed)))
        next(made)
        if mode is ChildMode.WARM_UP:
            return
        _callgrind("--instr=on")
        _callgrind("--dump=before")
        for _ in range(updates):
            next(made)
        _callgrind("--dump=updates")
        _callgrind("--dump=nothing")
        _callgrind("--instr=off")


def _callgrind(option: str) -> None:
    """Control the callgrind that runs this process."""
    subprocess.run(["callgrind_control", option, str(os.getpid())], check=True, stdout=subprocess.DEVNULL)


def count_instructions(config: ResolvedConfig, updates: int) -> Counter[str]:
    """Return the instructions of `updates` updates by class of object file. Raises RuntimeError if valgrind fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        done = _run_child(ChildMode.COUNT, config, updates, valgrind)
        profiles = [Path(f"{out}.{number}") for number in (2, 3)]  # the first was written before the updates
        if done.returncode or not all(profile.exists() for profile in profiles):
            raise RuntimeError(f"valgrind exited with status {done.returncode}:\n{done.stderr[-2000:]}")
        counts, overhead = (count_by_object(profile.read_text().splitlines()) for profile in profiles)
    parts: Counter[str] = Counter()
    for path, instructions in counts.items():
        parts[classify_object(path)] += instructions - overhead[path]
    return parts


def _run_child(
    mode: ChildMode, config: ResolvedConfig, updates: int, tool: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*tool, *module_command("benchmarks.counts", "--updates", str(updates), "--child", mode.value)]
    return subprocess.run(
        command, input=to_json(config), env=os.environ | AVX2, text=True, capture_output=True, check=False
    )


@click.command()
@click.option("--config", "name", default="nanogpt-cpu", show_default=True, help="The configuration.")
@click.option(
    "--precision", default=Precision.FLOAT32.value, show_default=True, help="Precision of activations and GEMM."
)
@click.option("--updates", default=1, show_default=True, help="Updates to count.")
@click.option("--child", hidden=True, help="Internal: train the configuration read from standard input.")
def main(name: str, precision: str, updates: int, child: str | None) -> None:
    """Count the instructions of an update with valgrind; takes minutes for a small model."""
    if child is not None:
        train_counted(resolved_from_json(sys.stdin.read()), updates, ChildMode(child))
        return
    if not shutil.which("valgrind"):
        raise click.ClickException("valgrind is not installed (Debian package: valgrind)")
    config = load_config(name)
    config = msgspec.structs.replace(config, precision=Precision(precision))
    config = resolve(config, cores=1, vocabulary=None if config.model.vocab_size else RANDOM_VOCABULARY)
    console = Console()
    console.print("compiling the kernels for AVX2 ...")
    warm = _run_child(ChildMode.WARM_UP, config, 1)  # compiling under valgrind would take an hour
    if warm.returncode:
        raise click.ClickException(f"training exited with status {warm.returncode}:\n{warm.stderr[-2000:]}")
    console.print("counting ...")
    try:
        found = count_instructions(config, updates)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    console.print(
        counts_table(
            found, updates, f"{name}, {precision}, one update of {config.sequences * config.model.context} tokens"
        )
    )


def counts_table(found: Counter[str], updates: int, title: str) -> Table:
    """Return the counts of one update as a table."""
    table = Table(title=title)
    table.add_column("code")
    for heading in ("million instructions", "share"):
        table.add_column(heading, justify="right")
    whole = max(found.total(), 1)
    for part in (KERNELS, INTERPRETER, OTHERS, "total"):
        number = whole if part == "total" else found[part]
        table.add_row(part, f"{number / updates / 1e6:,.2f}", f"{100 * number / whole:.2f} %")
    return table


if __name__ == "__main__":
    main()
