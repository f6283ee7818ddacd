"""The rooms of docs/architecture.md: the order of the sub-packages, their public names, and no circle among files.

The tables of that page are the specification. They are compared with every import of the source, including those within
functions and under TYPE_CHECKING.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "pipeline", "stages")
NAME = "threadloom"
PUBLIC_ROOMS = {"pipeline.testing", "pipeline.tuning"}
"""Rooms of `pipeline` that other packages may import; everything else of it comes from `threadloom.pipeline`."""


@dataclass(frozen=True)
class Room:
    """A row of a table: a sub-package, or a module at the top of a package."""

    name: str  # dotted, without "threadloom": "stages.step.bits16"
    may_import: tuple[str, ...]  # rooms of the same package
    listed: str  # the last cell of the row as plain text: "core, policy"


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` with an empty name; `module` without "threadloom."."""

    line: int
    module: str
    name: str


@cache
def rooms() -> dict[str, Room]:
    """Return the rooms by name, in the order of the tables: those that others import come first."""
    found: dict[str, Room] = {}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in PACKAGES:
        section = re.search(rf"^### {package}\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
        assert section, f"docs/architecture.md has no section {package}"
        above: list[str] = []
        for row in re.findall(r"^\| `([\w./]+)` \|.*\| ([^|]*) \|$", section[1], re.MULTILINE):
            name = f"{package}.{row[0].removesuffix('/').removesuffix('.py').replace('/', '.')}"
            listed = row[1].replace("`", "")
            allowed = [f"{package}.{word.replace('/', '.')}" for word in re.findall(r"[\w./]+", listed)]
            by_order = {"all above": above, "nothing": []}
            found[name] = Room(name, tuple(by_order.get(listed, allowed)), listed)
            above.append(name)
    return found


@cache
def modules() -> dict[str, Path]:
    """Return the files of the packages by dotted name, without "threadloom"; a package has the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def room_of(module: str) -> str:
    """Return the room that a module is in, or the package if it is not in any."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in rooms():
            return ".".join(parts[:length])
    return parts[0]


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return the imports of this project's modules in a file; relative imports are not used (ruff bans them)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == NAME:
            module = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                found.append(
                    Import(node.lineno, inner, "") if inner in modules() and not is_a_name(module, alias.name)
                    else Import(node.lineno, module, alias.name)
                )  # fmt: skip
        elif isinstance(node, ast.Import):
            found += [
                Import(node.lineno, alias.name.partition(".")[2], "")
                for alias in node.names
                if alias.name.partition(".")[0] == NAME
            ]
    return tuple(found)


@cache
def exported(package: str) -> dict[str, str]:
    """Return the public names of a package, each with the module that its `__init__` imports it from.

    A room re-exports by `from module import name as name`; the packages that users import list `__all__`.
    """
    tree = ast.parse(modules()[package].read_text(encoding="utf-8"))
    imported = [
        (alias, (node.module or "").partition(".")[2])
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    public = [alias.name for alias, _ in imported if alias.asname == alias.name]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public += ast.literal_eval(node.value)
    origin = {alias.asname or alias.name: module for alias, module in imported}
    return {name: origin[name] for name in public}


def is_a_name(package: str, name: str) -> bool:
    """Return True if a package exports the name, so that it hides a module of the same name."""
    return package in modules() and is_package(package) and name in exported(package)


def defining_module(module: str, name: str) -> str:
    """Return the file that an imported name comes from: a package only passes it on."""
    while name and module in modules() and is_package(module) and name in exported(module):
        module = exported(module)[name]
    return module


def product_imports() -> Iterator[tuple[str, Import]]:
    """Return (importing module, import) for every import of the packages, their own `__init__` files left out."""
    for module, path in modules().items():
        if not is_package(module) or module == "pipeline.testing":
            yield from ((module, each) for each in imports(path))


def test_every_file_is_in_a_room_and_every_room_has_files() -> None:
    homeless = [module for module in modules() if room_of(module) in PACKAGES and not is_package(module)]
    assert homeless == []
    assert [name for name in rooms() if name not in modules()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_may_import_only_rooms_above_it(package: str) -> None:
    order = list(rooms())
    wrong = [
        f"{room.name} may import {other}, which is not above it"
        for room in rooms().values()
        if room.name.startswith(package + ".")
        for other in room.may_import
        if other not in order or order.index(other) >= order.index(room.name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_table(package: str) -> None:
    wrong = []
    for module, each in product_imports():
        target = room_of(defining_module(each.module, each.name))
        if module.partition(".")[0] != package or target.partition(".")[0] != package:
            continue
        room = room_of(module)
        if target != room and target not in rooms()[room].may_import:
            wrong.append(f"{module}:{each.line} ({room}) imports {each.name or each.module} of {target}")
    assert not wrong, "\n".join(wrong)


def test_the_docstring_of_a_room_lists_what_the_table_lists() -> None:
    wrong = []
    for room in rooms().values():
        docstring = ast.get_docstring(ast.parse(modules()[room.name].read_text(encoding="utf-8"))) or ""
        if is_package(room.name) and f"May import: {room.listed}." not in docstring.splitlines():
            wrong.append(f"{room.name}: needs a line 'May import: {room.listed}.'")
    assert not wrong, "\n".join(wrong)


def test_nobody_reaches_past_a_rooms_public_names() -> None:
    wrong = []
    outside = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    everyone = [*product_imports(), *((f"outside.{path.stem}", each) for path in outside for each in imports(path))]
    for module, each in everyone:
        whole_package = not each.name and each.module in PACKAGES  # from threadloom import kernels
        if not each.module or whole_package or room_of(module) == room_of(each.module):
            continue
        package = each.module.partition(".")[0]
        within = module.partition(".")[0] == package
        if package == "pipeline" and not within:
            allowed = each.module == "pipeline" or each.module in PUBLIC_ROOMS
        else:
            allowed = each.module in rooms() or (each.module == package and not within)
        public = is_package(each.module) and each.name in exported(each.module)
        top = not is_package(each.module) and each.module in rooms()  # a module at the top of a package, such as cli
        if not (allowed and (public or top)):
            wrong.append(f"{module}:{each.line} imports {each.name or 'the module'} of {each.module}")
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle_among_files() -> None:
    graph: dict[str, set[str]] = {}
    for module, each in product_imports():
        target = defining_module(each.module, each.name)
        if target in modules() and not is_package(target):
            graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
