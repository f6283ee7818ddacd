"""Distribution of the tests over the worker processes of pytest-xdist: units of tests and their order.

A unit runs in one process, and a process that is idle takes the next unit. The tests in `tests/kernels` are one unit,
because two processes would compile the same kernels; so are those in `tests/pipeline`, because some of them compare the
content of /dev/shm before and after. Elsewhere a file is a unit. Large units come first, so that the processes finish
at about the same time.
"""

SEPARATE = (
    "tests/targets/test_targets.py",
    "tests/kernels/compiling/test_symbol_visibility.py",
    "tests/kernels/compiling/test_cache.py",
    "tests/kernels/matmul/test_blas_loading.py",
)
"""Files that compile in processes of their own."""

LARGE = (
    "tests/test_docs.py",
    "tests/stages/test_cli_endings.py",
    "tests/stages/tools/bench/test_bench.py",
    "tests/test_benchmarks.py",
    "tests/test_project.py",
    "tests/stages/tools/bench/test_check.py",
    "tests/stages/training/test_kill.py",
    "tests/stages/run/test_estimate.py",
    "tests/stages/training/test_replay_grid.py",
    "tests/test_bring_your_own_model.py",
    "tests/stages/checkpoint/test_checkpoint_faults.py",
    "tests/stages/tools/bench/test_bench_bits16.py",
    "tests/stages/training/test_resume.py",
    "tests/stages/tools/tune/test_goal.py",
    "tests/stages/training/test_precisions.py",
    "tests/test_packaging.py",
    "tests/test_benchmarks_finetune.py",
)
"""Other files that take more than about five seconds."""

ORDER = ("tests/kernels", "tests/pipeline", *SEPARATE, *LARGE)


def unit_of(node_id: str) -> str:
    """Return the name of the unit of a test: its file, or a directory."""
    file = node_id.partition("::")[0]
    for directory in ("tests/kernels", "tests/pipeline"):
        if file.startswith(f"{directory}/") and file not in SEPARATE:
            return directory
    return file


def rank_of(node_id: str) -> int:
    """Return the position of a test's unit in `ORDER`; all others come last."""
    unit = unit_of(node_id)
    return ORDER.index(unit) if unit in ORDER else len(ORDER)
