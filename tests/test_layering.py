"""The structure of the repository, checked in its source: imports, exports, lengths of files."""

import ast
import importlib
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "pipeline", "stages", "examples")
FOLDERS = (*PACKAGES, "tests", "benchmarks")

MAY_IMPORT = {
    "kernels": {"kernels"},
    "pipeline": {"pipeline"},
    "stages": {"kernels", "pipeline", "stages"},
    "examples": {"kernels", "pipeline", "stages", "examples"},
}
"""Package → the packages that it may import. Tests and benchmarks may import all, and nothing imports them."""

LONG, TOO_LONG = 400, 450
"""Lines per file: the test warns above the first number and fails above the second."""

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

EXPORTS: dict[str, str] = {
    "kernels": """
        ATTENTION_TILE CHUNK AccumulationTicket Activations AdamWStep Affine AttentionActivations BlasInfo DecodeScratch
        Floats GemmBackend Gpt2Constants HeadCounts HeadNormWeights KVCache Op RowStatistics Scratch TokenIds Weights
        DelayedAdamWStep adamw_forecast_update adamw_lead_update adamw_update average_weights
        attention_backward attention_forward blas_info blocks_backward blocks_forward cross_entropy_backward
        cross_entropy_forward decode_token embedding_backward embedding_forward flushing_blas_threads gelu_backward
        gelu_forward gemm gemm_backend head_backward head_loss head_norm_backward head_norm_forward layernorm_apply
        layernorm_backward layernorm_forward linear_backward_bias linear_backward_input linear_backward_weight
        linear_forward linear_residual_forward logits_backward_input logits_forward next_logits prefill_cache
        rmsnorm_apply rmsnorm_backward rmsnorm_forward rotary_backward rotary_forward single_writer sum_lanes
        swiglu_backward swiglu_forward
    """,
    "pipeline": """
        ALIGNMENT Abortable AdmissionError Arena AsyncRun Attempt BalanceRules BankStatistics Banks BlasThreads
        BottleneckKind Cancelled Channel ChannelStatistics ChannelTimeout Closed Controller DeadLetter Decision
        Diagnosis Distribution Expansion FailFast Fifo Gather Graph GraphError GraphFormat GraphView InOrder ItemTimeout
        Join Label LaneOrder LanePlan Lanes Lease LiveView MonotonicCounter Node Observer OnError OnFailure OnProcesses
        OnStall OpenTelemetryExporter Part PerWorker PipelineError Policy Pool PoolExhausted PoolStatistics Priority
        ProcessError ProcessTraceback ProcessWorker Progress ProgressBar PrometheusExporter Rate Retry RetryAfter
        RouteError Run RunOptions RunStatistics SKIP Shards SharedPool ShutdownTimeout Sink SinkIterator Skip SkipFailed
        StageFailure StageOptions StageStatistics StaleVersion StallReport Stalled TimelineOptions TooManySkipped Trace
        TraceEvent Wait Watchdog WorkerChange WorkerDied WorkerTimeout affinity_cores aligned_zeros arena_size
        available_cores blas_threads diagnose draw_graph draw_timeline find_bottleneck format_bytes format_clock
        format_duration format_estimate format_rate is_redrawable loaded_blas on_processes per_worker progress_of
        render_png status_line system_memory version_for
    """,
}
"""Package → its pinned `__all__`, names between spaces. A name that comes or goes is a decision: change it here too."""


@cache
def sources() -> tuple[Path, ...]:
    """Return every Python file of the repository."""
    return tuple(sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def names(paths: tuple[Path, ...]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Return (line, dotted module) of every import in a file, also those within functions and under TYPE_CHECKING."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.removeprefix("threadloom.")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports stay in their package: ruff bans those of parents.
            package = path.relative_to(ROOT).parts[0]
            module = f"{package}.{node.module or ''}" if node.level else node.module or ""
            if module == "threadloom":
                yield from ((node.lineno, alias.name) for alias in node.names)
            else:
                yield node.lineno, module.removeprefix("threadloom.")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_keep_to_the_layers(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == package
        for line, module in imports(path)
        if (top := module.partition(".")[0]) in FOLDERS and top not in MAY_IMPORT[package]
    ]
    assert not wrong


def test_the_reference_model_imports_nothing_of_the_project() -> None:
    tests = ROOT / "tests"
    files = [*sorted((tests / "reference").glob("*.py")), tests / "rounding_marks.py"]
    assert len(files) > 1
    for path in files:
        modules = {module for _, module in imports(path)}
        foreign = {module for module in modules if module.partition(".")[0] in {*FOLDERS, "threadloom"}}
        assert {m for m in foreign if not m.startswith(("tests.reference.", "tests.rounding_marks"))} == set(), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_file_only_re_exports(package: str) -> None:
    path = ROOT / package / "__init__.py"
    if not path.exists():
        pytest.skip(f"there is no {package}/__init__.py")
    other = []
    for index, node in enumerate(tree_of(path).body):
        docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        if not (docstring or exports or isinstance(node, ast.ImportFrom)):
            other.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not other


@pytest.mark.parametrize("package", EXPORTS)
def test_exports_are_pinned(package: str) -> None:
    module = importlib.import_module(f"threadloom.{package}")
    assert sorted(module.__all__) == sorted(EXPORTS[package].split())
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def mentioning(words: Iterable[str]) -> list[Path]:
    """Return the sources whose text contains one of the words: parsing all of them takes seconds."""
    pattern = re.compile("|".join(map(re.escape, words)))
    return [path for path in sources() if pattern.search(path.read_text(encoding="utf-8"))]


def test_nothing_is_pickled() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in mentioning(PICKLES)
        for line, module in imports(path)
        if module.partition(".")[0] in PICKLES
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{node.value.lineno} allows pickles"
        for path in mentioning(["allow_pickle"])
        if path.relative_to(ROOT).parts[0] != "tests"  # a test may write a file that must be rejected
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
    ]
    assert not wrong


@pytest.mark.filterwarnings("default:.* lines, more than")
def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    for path, length in lengths.items():
        if LONG < length <= TOO_LONG:
            warnings.warn(f"{path.relative_to(ROOT)} has {length} lines, more than {LONG}", stacklevel=1)
    assert [f"{path.relative_to(ROOT)}: {length}" for path, length in lengths.items() if length > TOO_LONG] == []


def test_no_package_index_is_named() -> None:
    # The machine decides where packages come from. The words are split so that this file does not contain them.
    forbidden = [
        "pypi" + ".org",
        "python" + "hosted",
        "index" + "-url",
        "extra-index",
        "find" + "-links",
        "PIP_" + "INDEX",
    ]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    wrong = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # deleted, or binary
        wrong += [f"{name} has {word!r}" for word in forbidden if word in text and path != Path(__file__)]
    assert not wrong
