"""Compilation of the kernels before the run, by a tiny training whose stages are called one after another.

Numba compiles a kernel at its first call and caches the result on disk. The result depends on the types of the
arguments, not on their sizes, so a model of a few hundred parameters compiles all kernels that a large one needs. Each
architecture and precision has its own kernels. Loading cached kernels takes a fraction of a second.

Numba compiles one kernel at a time per process. If kernels have to be compiled, a second process compiles the backward
pass of the blocks, the largest part, and the loss of an evaluation, while this one compiles the others; this one then
loads those from the cache. For that, each process leaves out the kernels of the other one
(`kernels.compiling.left_out`). A team's kernels of head and blocks are called by several threads at once: all of its
backward pass is compiled by the second process, and the loss of an evaluation by this one.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from loguru import logger
from numba.core import event

from threadloom.kernels.compiling import CACHE_FOLDER, has_failed_to_save, left_out
from threadloom.pipeline import available_cores
from threadloom.stages.config import (
    Config,
    DelayCorrection,
    EmbeddingConfig,
    Gemm,
    Gpt2Config,
    LlamaConfig,
    ModelArchitecture,
    ModelConfig,
    OptimizerConfig,
    Precision,
    ResolvedConfig,
    ThreadsConfig,
)
from threadloom.stages.console import module_command, signals_blocked
from threadloom.stages.data import RandomTokens, TokenIds
from threadloom.stages.memory import MicroGradient
from threadloom.stages.resolve import resolve
from threadloom.stages.step import ValidationLoss, plan_micro_batches
from threadloom.stages.training.training import Training

OnProgress = Callable[[str], None]
"""Progress callback, called with a line of text; may be called from any thread."""
SLOW = 1.0
"""Seconds of loading or compiling above which progress is reported."""
INTERVAL = 5.0
"""Seconds between two progress reports."""
_Kernels = tuple[Precision, ModelArchitecture, int]
"""What decides which kernels a backward pass has; the last is the size of a team."""
_FORWARD, _HEAD, _BLOCKS = "blocks_forward", "head_backward", "blocks_backward"
"""Names of the kernels of the passes (`kernels.common.MODEL_KERNELS`)."""
_TINY: Mapping[ModelArchitecture, ModelConfig] = {
    ModelArchitecture.GPT2: Gpt2Config(vocab_size=3, context=4, layers=1, heads=1, channels=8),
    ModelArchitecture.LLAMA: LlamaConfig(vocab_size=3, context=4, layers=1, heads=1, channels=8, mlp_width=8),
}


def compile_kernels(
    on_progress: OnProgress = logger.info,
    precision: Precision = Precision.FLOAT32,
    architecture: ModelArchitecture = ModelArchitecture.GPT2,
    delayed: DelayCorrection = DelayCorrection.NONE,
    *,
    embedding: EmbeddingConfig | None = None,
    team: int = 1,
    rotated: bool = False,
) -> float:
    """Load or compile every kernel that training calls for an architecture in a precision; return the elapsed seconds.

    `delayed` is the remedy for a delay, which decides the kernel of the optimizer; `embedding` decides those of
    the output projection, a `team` of several threads those of forward and backward, and `rotated` those of an
    optimizer in rotated bases. `on_progress` is called, from another thread too, once this takes longer than loading
    cached kernels.
    """
    begin = time.perf_counter()
    with _CompileProgress(on_progress) as progress:

        def new_step() -> _TinyStep:
            return _TinyStep(precision, architecture, delayed, embedding, team, rotated=rotated)

        _compile(new_step, (precision, architecture, team), on_progress, progress)
    return time.perf_counter() - begin


def compile_kernels_of(config: ResolvedConfig, on_progress: OnProgress = logger.info) -> float:
    """Load or compile every kernel that training calls with a configuration, as `compile_kernels` does."""
    return compile_kernels(
        on_progress,
        config.precision,
        config.model.architecture,
        config.delay_correction,
        embedding=config.embedding,
        team=config.threads.team,
        rotated=config.optimizer.rotation > 0,
    )


def compile_backward(precision: Precision, architecture: ModelArchitecture, team: int = 1) -> None:
    """Compile the backward pass of the blocks and the loss of an evaluation, in the second process.

    For a team compile the whole backward pass and no more. Forward is left out, since only types matter.
    """
    step = _TinyStep(precision, architecture, team=team)
    step.embedding()
    with left_out(*(() if team > 1 else (_HEAD,))):
        step.backward()
    if team == 1:
        with left_out(_FORWARD):
            step.evaluation()


class _CompileProgress(event.Listener):  # type: ignore[misc]  # Numba has no types
    """Counts compiled kernels, and reports the count from a thread until the block ends.

    Loading cached kernels is fast and is not reported.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.compiled = 0  # written by the thread that compiles
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._report, name="compiling")

    def __enter__(self) -> Self:
        event.register("numba:compile", self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        event.unregister("numba:compile", self)

    def on_start(self, event: event.Event) -> None:
        """Ignore the start of a compilation."""

    def on_end(self, event: event.Event) -> None:
        """Count a compiled kernel."""
        self.compiled += 1

    def _report(self) -> None:
        if self._over.wait(SLOW):
            return
        self._on_progress(
            "compiling the kernels for this processor, which takes about half a minute"
            + (", once; they are cached" if CACHE_FOLDER.path else "")
        )
        while not self._over.wait(INTERVAL):
            self._on_progress(f"compiling: {self.compiled} kernels so far")


class _OneWindow:
    """A single micro-batch to evaluate."""

    micro_batches = 1
    tokens = 4

    def fill(self, batch: int, micro: int, ids: TokenIds, targets: TokenIds) -> None:
        ids.fill(0)
        targets.fill(1)

    def counted(self, batch: int) -> int:
        return self.tokens


class _TinyStep:
    """One step of a tiny training. Its methods may be called in any order, except that `embedding` comes first."""

    def __init__(
        self,
        precision: Precision,
        architecture: ModelArchitecture,
        delayed: DelayCorrection = DelayCorrection.NONE,
        embedding: EmbeddingConfig | None = None,
        team: int = 1,
        *,
        rotated: bool = False,
    ) -> None:
        self._training = _tiny_training(precision, architecture, delayed, embedding, team, rotated=rotated)
        self._batch = list(plan_micro_batches(0, 1, 2))
        self._gradients: list[MicroGradient] = []

    def embedding(self) -> None:
        """Draw and embed the batch."""
        for item in self._batch:
            self._training.draw.acquire(item)
            self._training.embed.acquire(self._training.draw(item))
            self._training.embed(item)

    def forward(self) -> None:
        """Run the forward pass of the blocks."""
        for item in self._batch:
            self._training.forward(item)

    def head(self) -> None:
        """Run the backward pass of the head, and that of the blocks if it is compiled."""
        with left_out(_BLOCKS):
            self.backward()

    def backward(self) -> None:
        """Run the backward pass of head and blocks."""
        self._gradients.extend(self._training.backward(item) for item in self._batch)

    def optimizer(self) -> None:
        """Reduce, clip, update, publish; `head` or `backward` has to come before."""
        training = self._training
        reduced = [training.reduce(shard) for shard in training.collect(self._gradients)]
        training.clip.acquire(reduced)
        training.publish([training.update(shard) for shard in training.clip(reduced)])

    def evaluation(self) -> None:
        """Evaluate the newest version."""
        with self._training.banks.lease_newest() as lease:
            ValidationLoss(self._training.compute).mean_loss(lease.bank, _OneWindow())


def _compile(
    new_step: Callable[[], _TinyStep],
    kernels: _Kernels,
    on_progress: OnProgress,
    progress: _CompileProgress,
) -> None:
    def timed(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        if seconds > SLOW:
            on_progress(f"compiled kernels: {name} ({seconds:.1f} s)")

    step = new_step()  # in 16 bits this packs weights, which compiles kernels
    timed("embedding", step.embedding)
    # If embedding had to be compiled, so have the others. The second process hands its kernels over in the cache.
    wanted = progress.compiled > 0 and available_cores() > 1 and CACHE_FOLDER.path is not None
    is_team = kernels[2] > 1
    with _second_process(kernels, wanted=wanted, on_progress=on_progress) as wait:
        timed("forward", step.forward)
        if is_team:
            timed("evaluation", step.evaluation)
        else:
            timed("backward of the head", step.head)
            timed("optimizer", step.optimizer)
            step = new_step()  # each step runs each stage once
            step.embedding()
        timed("backward of the blocks, in a second process", wait)
        timed("backward", step.backward)
        if is_team:
            timed("optimizer", step.optimizer)
        else:
            timed("evaluation", step.evaluation)


@contextmanager
def _second_process(
    kernels: _Kernels, *, wanted: bool, on_progress: OnProgress = logger.info
) -> Iterator[Callable[[], object]]:
    """Compile the backward pass of the blocks in a process that ends with this context; yield a function that waits.

    If the process fails or cannot be started, the kernels that it did not compile are compiled in this process.
    """
    if not wanted:
        yield lambda: None
        return
    precision, architecture, team = kernels
    of_kernels = (precision.value, architecture.value, str(team))
    command = module_command("threadloom.stages.child_processes.compile_backward", *of_kernels)
    null = subprocess.DEVNULL
    try:  # its standard input closes when this process ends for any reason, and it exits at the end of its input
        with signals_blocked():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null)
    except OSError as error:  # a limit on processes or memory, or an interpreter that may not be run
        reason = error.strerror or type(error).__name__
        on_progress(f"the second compiling process cannot be started ({reason}): compiling will take longer")
        yield lambda: None
        return
    with process:

        def wait() -> None:
            if has_failed_to_save():  # the cache is full, and could not hold its kernels either
                process.kill()
            elif status := process.wait():
                on_progress(f"the second compiling process exited with status {status}: compiling will take longer")

        try:
            yield wait
        finally:
            process.kill()


def _tiny_training(
    precision: Precision,
    architecture: ModelArchitecture,
    delayed: DelayCorrection,
    embedding: EmbeddingConfig | None,
    team: int,
    *,
    rotated: bool,
) -> Training:
    config = Config(
        name="warm-up",
        model=_TINY[architecture],
        batch_size=2,
        micro_batch=1,
        lanes=1,
        steps=1,
        precision=precision,
        delay=int(delayed.forecasts),
        delay_correction=delayed,
        embedding=embedding.tiny if embedding else EmbeddingConfig(),
        optimizer=OptimizerConfig(rotation=int(rotated)),
        gemm_backend=Gemm.NUMBA if team > 1 else None,
        threads=ThreadsConfig(team=min(team, 2)),
    )
    resolved = resolve(config, cores=1)
    return Training(resolved, RandomTokens(resolved.geometry(), resolved.batch_sizes, resolved.seed))
