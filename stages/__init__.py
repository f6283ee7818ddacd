"""GPT training as stages, on the kernels and the engine: configuration, data, forward, backward, optimizer, the rest.

Layering: this package imports `kernels` and `pipeline`; nothing of those imports it. Nothing is re-exported here, so
that each command loads only its own modules: `threadloom --help` does not wait for Numba. Where to look first:

    config, resolve      the configuration: its settings; load_config, apply_overrides, resolve
    data                 token files and batch sources
    training             Training: memory and stages of a run, and the graph that joins them
    training.sequential  the same stages in one thread
    run.session          a run in its run directory, from text to pictures
    inference.model      a trained model, opened for sampling and evaluation
    cli                  the command line
"""
