"""The graph that `threadloom tune --pipeline` names: `module:graph` or `path/to/file.py:graph`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from loguru import logger

from threadloom.pipeline import Graph
from threadloom.stages.config import InputError

EXAMPLE = "module:graph or path/to/file.py:graph"


def load_graph(text: str) -> Graph | Callable[[], Graph]:
    """Return the graph, or the function that creates it, at a place such as `module:graph`.

    Modules are imported from the current directory first, and a file as if it were run from its folder, except that its
    `__name__` is that of the file. Raises InputError if there is none.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise InputError("--pipeline", f"a place such as {EXAMPLE}", repr(text))
    module = _module(place)
    if not hasattr(module, name):
        near = [each for each, value in vars(module).items() if isinstance(value, Graph) or _makes_graph(value, module)]
        hint = f"it defines {', '.join(near)}" if near else "define a function without arguments that returns a Graph"
        raise InputError("--pipeline", f"a graph, or a function, named {name!r} in {place}", "no such name", hint=hint)
    found = getattr(module, name)
    if not isinstance(found, Graph) and not callable(found):
        raise InputError("--pipeline", "a Graph, or a function that returns one", f"{name} = {found!r} in {place}")
    return found  # type: ignore[no-any-return]  # the result of a call is checked when it is called


def _makes_graph(value: object, module: ModuleType) -> bool:
    """Return True for a function of the module itself that is annotated with Graph."""
    own = getattr(value, "__module__", None) == module.__name__
    return own and getattr(value, "__annotations__", {}).get("return") in (Graph, "Graph")


def _module(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py" or path.is_file()
    if is_file and not path.is_file():
        raise InputError("--pipeline", f"a file, as in {EXAMPLE}", f"{place}, which does not exist")
    folder = str((path.parent if is_file else Path()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _imported_file(path) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if is_file or error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise _failed(place, error) from error
        raise InputError(
            "--pipeline", f"a module that can be imported from {Path.cwd()}", repr(place),
            hint=f"there is no module {error.name!r}; for a file, write path/to/file.py:graph",
        ) from error  # fmt: skip
    except Exception as error:  # of the user's module
        raise _failed(place, error) from error


def _imported_file(path: Path) -> ModuleType:
    """Import a file under its own name, so that processes of the graph can import it too."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError("--pipeline", "a Python file", str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _failed(place: str, error: Exception) -> InputError:
    logger.opt(exception=error).debug("traceback")
    return InputError(
        "--pipeline", f"a module that can be imported: {place}", f"{type(error).__name__}: {error}",
        hint="`threadloom --log-level DEBUG tune ...` prints the traceback",
    )  # fmt: skip
