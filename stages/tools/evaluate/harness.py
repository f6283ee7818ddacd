"""Tasks of lm-evaluation-harness with a model of ours, which it knows as `threadloom`.

`python -m threadloom.stages.tools.evaluate.harness` is the command `lm_eval` with this model added, as in
``--model threadloom --model_args path=RUN --tasks arc_easy``. The harness is imported when it is used: it is the extra
`lm-eval`.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threadloom.stages.config import ConfigError
from threadloom.stages.inference import HarnessModel

NAME = "threadloom"
"""The name of the model in the harness."""


def register() -> type[HarnessModel]:
    """Make the model known to the harness, and return its class, a subclass of the harness's `LM` and of ours."""
    registry = _library("lm_eval.api.registry")
    if NAME in registry.model_registry:
        found: type[HarnessModel] = registry.get_model(NAME)
        return found
    base = _library("lm_eval.api.model").LM
    created: type[HarnessModel] = registry.register_model(NAME)(type("ThreadloomModel", (HarnessModel, base), {}))
    return created


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[str | dict[str, Any]],
    *,
    examples: int | None,
    folder: Path | None,
    limit: int | None,
) -> dict[str, Any]:
    """Return the results of tasks by name, with `examples` solved examples before each question.

    `folder` has files of further tasks; `limit` is the maximum number of questions of a task. Raises `ConfigError` for
    a name that is no task.
    """
    manager = _library("lm_eval.tasks").TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )
    unknown = [task for task in tasks if isinstance(task, str) and not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            "--harness",
            expected="the name of a task of lm-evaluation-harness" + (f" in {folder}" if folder else ""),
            got=repr(unknown[0]),
            hint="`lm_eval ls tasks` lists them; --tasks FOLDER reads those of a folder",
        )
    results: dict[str, Any] = _library("lm_eval.evaluator").simple_evaluate(
        model, tasks=list(tasks), num_fewshot=examples, limit=limit, task_manager=manager, log_samples=False
    )
    return results


def results_table(results: dict[str, Any]) -> str:
    """Return the table of the harness."""
    table: str = _library("lm_eval.utils").make_table(results)
    return table.rstrip("\n")


def results_json(results: dict[str, Any]) -> str:
    """Return the figures of each task as JSON."""
    return json.dumps(results["results"], indent=1, default=str)


def _library(module: str) -> Any:
    """Return a module of the harness; raises `ConfigError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "--harness",
            expected="lm-evaluation-harness, the package lm_eval, and what it needs",
            got=f"not installed: {error.name or error}",
            hint="pip install 'threadloom[lm-eval]'",
        ) from error


if __name__ == "__main__":
    register()
    _library("lm_eval.__main__").cli_evaluate()
