"""Serve measurements of one execution mode, or measure the time to the first update.

Without arguments: serves requests (`stages.console.serve`) with a `MeasuredStepRunner`. With a time.monotonic() of the
parent as argument: reads a resolved configuration from standard input and replies once, with the seconds from that time
to each point up to the first update.
"""

import json
import sys
import time

from threadloom.stages.console import redirect_stdout_to_stderr, serve


def time_to_first_update(begin: float, text: str) -> dict[str, float]:
    """Return the seconds since `begin` at each point up to the first update of the configuration `text`."""
    reached = {"interpreter": time.monotonic() - begin}
    from threadloom.stages.data import RandomTokens
    from threadloom.stages.resolve import gemm_settings, resolved_from_json
    from threadloom.stages.training import Training, compile_kernels_of

    reached["imports"] = time.monotonic() - begin
    config = resolved_from_json(text)
    compile_kernels_of(config, lambda _: None)
    reached["kernels"] = time.monotonic() - begin
    training = Training(config, RandomTokens(config.geometry(), config.batch_sizes, config.seed))
    reached["memory and weights"] = time.monotonic() - begin
    with gemm_settings(config), training.graph().start(resources=training.resources) as run:
        next(iter(run))
        reached["first update"] = time.monotonic() - begin
    return reached


def main() -> None:
    """Reply once if there is an argument; otherwise serve until the input ends."""
    if len(sys.argv) > 1:
        replies = redirect_stdout_to_stderr()
        replies.write(json.dumps(time_to_first_update(float(sys.argv[1]), sys.stdin.buffer.read().decode())) + "\n")
        return
    from threadloom.stages.training import ExecutionMode, MeasuredStepRunner

    serve(lambda task: MeasuredStepRunner(task["config"], ExecutionMode[task["mode"]], task["cores"]))


if __name__ == "__main__":
    main()
