"""The documentation: its Python runs and prints the shown output, its commands parse, its links lead to files.

In README.md, CONTRIBUTING.md, CHANGELOG.md and docs/**/*.md,

- each ```python block is run in a separate namespace, or, on a page with the sentence "The blocks of this page belong
  together", in a shared one. A block with `title="NAME.py"` is written to that file and run as a program.
- a ```text block directly after it with a title that begins with "prints" is the expected output. The title "prints"
  compares exactly, "prints, in any order" compares sorted lines, "prints, for example" ignores numbers, and "prints, on
  one machine" compares nothing.
- the comment `<!-- not run: REASON -->` above a block excludes it.

`python tests/test_docs.py PAGE...` runs pages and writes the printed output into them.
"""

import ast
import contextlib
import enum
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FOLDERS = "kernels|pipeline|stages|examples|tests|benchmarks|docs"

FENCE = re.compile(r"^```(\w*)(.*)$")
TITLE = re.compile(r'title="([^"]*)"')
TOGETHER = "The blocks of this page belong together"
NOT_RUN = re.compile(r"^<!-- not run: (.*\S) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    line: int
    """Line of the opening fence, counted from 1."""
    text: str
    reason: str | None
    """Reason for not running it; None for a block that is run."""


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    opened: Block | None = None
    before = ""
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            title, reason = TITLE.search(fence[2]), NOT_RUN.match(before)
            opened = Block(fence[1], title[1] if title else "", number, "", reason[1] if reason else None)
            lines = []
        elif opened is not None and line == "```":
            found.append(replace(opened, text="".join(f"{each}\n" for each in lines)))
            opened = None
        elif opened is not None:
            lines.append(line)
        before = line if line.strip() else before
    if opened is not None:
        raise ValueError(f"the block of line {opened.line} is never closed")
    return found


def prose_of(page: str) -> str:
    """Return a page without its fenced blocks, line by line."""
    inside, kept = False, []
    for line in page.splitlines():
        fence = line.lstrip().startswith("```")
        kept.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(kept)


def run_page(path: Path, folder: Path) -> Iterator[tuple[Block, Block | None, str]]:
    """Run the Python of a page; yield each block, the block with its expected output (or None), and its output."""
    page = path.read_text(encoding="utf-8")
    together, blocks = TOGETHER in " ".join(page.split()), blocks_of(page)
    module = types.ModuleType(f"page_{path.stem}")
    sys.modules[module.__name__] = module
    try:
        for block, after in zip_longest(blocks, blocks[1:]):
            if block.language != "python" or block.reason:
                continue
            shown = after if after and after.language == "text" and after.title.startswith("prints") else None
            if block.title.endswith(".py"):
                yield block, shown, run_program(block, folder)
                continue
            code = compile("\n" * block.line + block.text, str(path), "exec")
            if not together:
                module = sys.modules[module.__name__] = types.ModuleType(module.__name__)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, module.__dict__)
            yield block, shown, out.getvalue()
    finally:
        del sys.modules[module.__name__]


def run_program(block: Block, folder: Path) -> str:
    """Run a block as a program; return its standard output."""
    (folder / block.title).write_text(block.text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, block.title], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def normalised(text: str, title: str) -> list[str]:
    """Return the lines of an output in the form that is compared under the title."""
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    if title == "prints, on one machine":
        return []
    if title == "prints, in any order":
        return sorted(lines)
    if title == "prints, for example":
        return [" ".join(re.sub(r"\d[\d.,:]*", "#", line).split()) for line in lines]
    assert title == "prints", f"no such title: {title!r}"
    return lines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an empty cache, as on a machine without tuning records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.timeout(300)  # the first run compiles kernels
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_the_python_of_a_page_runs_and_prints_the_shown_output(path: Path, folder: Path) -> None:
    for block, shown, output in run_page(path, folder):
        if shown is not None:
            assert normalised(output, shown.title) == normalised(shown.text, shown.title), f"{path}:{block.line}"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_have_real_subcommands_and_options(path: Path) -> None:
    wrong = [
        f"{path}:{block.line}: {line}: {problem}"
        for block in blocks_of(path.read_text(encoding="utf-8"))
        if block.language == "console"
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith("$ ") and (problem := problem_with(shlex.split(line[2:], comments=True)))
    ]
    assert not wrong


def problem_with(words: list[str]) -> str | None:
    """Return the problem with a command of this project; None if it has none, or for other programs."""
    try:
        if words[0] == "threadloom":
            parse(words[1:])
        elif words[0] == "make":
            text = (ROOT / "Makefile").read_text(encoding="utf-8")
            targets = [word for word in words[1:] if "=" not in word]
            unknown = [word for word in targets if f".PHONY: {word}\n" not in text]
            return f"no such target: {unknown}" if unknown else None
        elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] in FOLDERS.split("|"):
            file = ROOT / (words[2].replace(".", "/") + ".py")
            return None if file.exists() else f"no such module: {words[2]}"
    except (click.ClickException, ValueError) as error:
        return str(error)
    return None


def parse(words: list[str]) -> None:
    """Parse a threadloom command and its settings without running it."""
    from threadloom.stages.cli import main
    from threadloom.stages.resolve.loading import apply_overrides, load_config

    with contextlib.suppress(click.exceptions.Exit), main.make_context("threadloom", words) as group:
        rest = [*group._protected_args, *group.args]
        name, command, arguments = main.resolve_command(group, rest)
        assert command is not None
        with command.make_context(name, arguments, parent=group) as context:
            settings = context.params.get("overrides") or ()
            apply_overrides(load_config(context.params.get("config_name") or "nanogpt-cpu"), settings)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_relative_links_lead_to_files(path: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", prose_of(path.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    local = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)} - {""}
    assert [target for target in sorted(local) if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_only_files_that_exist_are_named(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./*-]*)`", page))
    missing = [name for name in sorted(named) if not any(ROOT.glob(name.rstrip("/")))]
    modules = set(re.findall(r"`([a-z_*]+\.py)`", prose_of(page)))
    programs = {block.title for block in blocks_of(page)}
    folders = [ROOT / folder for folder in FOLDERS.split("|")]
    missing += [name for name in sorted(modules - programs) if not any(any(folder.rglob(name)) for folder in folders)]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_name_of_the_reference_can_be_imported(path: Path) -> None:
    for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):  # the longest module name: a function may have the name of a module
            with contextlib.suppress(ModuleNotFoundError):
                thing: object = importlib.import_module(".".join(parts[:length]))
                break
        for part in parts[length:]:
            thing = getattr(thing, part)


def test_the_reference_has_every_setting_and_choice_with_its_meaning() -> None:
    from threadloom.stages import config
    from threadloom.stages.resolve.setting_types import setting_types

    page = (ROOT / "docs" / "reference" / "stages.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^::: threadloom\.stages\.config\.(\w+)\n    options: \{ (.*) \}$", page, re.MULTILINE))
    room = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(config.__file__).parent.glob("*.py")]
    explained = {owner: names for module in room for owner, names in names_with_meaning(module).items()}
    for key, kind in setting_types().items():
        section, _, name = key.rpartition(".")
        owner = owner_of(config.Config, key.split("."))
        assert owner in listed, f"{key}: {owner} is not in the reference"
        assert "members" not in listed[owner], f"{key}: {owner} is there without its fields"
        assert not section or f'"{section}.* ({owner})"' in listed[owner], f"{key}: its section has no such heading"
        assert name in explained[owner], f"{key}: no meaning below it in stages/config"
        for choice in typing.get_args(kind) or (kind,):
            if isinstance(choice, enum.EnumType):
                assert choice.__name__ in listed, f"{key}: {choice.__name__} is not in the reference"
                assert set(choice.__members__) <= explained[choice.__name__], f"{key}: a choice without a meaning"


def owner_of(section: type, path: list[str]) -> str:
    """Return the name of the class that declares the setting at a path of names."""
    from threadloom.stages.resolve.setting_types import field_types, sections_of

    first, *rest = path
    owners = [base.__name__ for base in section.__mro__ if first in inspect.get_annotations(base)]
    if owners and rest:
        owners = [owner_of(inner, rest) for inner in sections_of(field_types(section)[first])]
    return next(filter(None, owners), "")


def names_with_meaning(module: ast.Module) -> dict[str, set[str]]:
    """Return, for each class, the names in its body that have a docstring: the reference shows these."""
    found: dict[str, set[str]] = {}
    for one in module.body:
        if isinstance(one, ast.ClassDef):
            names = found[one.name] = set()
            for line, below in pairwise(one.body):
                text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                targets = line.targets if isinstance(line, ast.Assign) else []
                targets = [line.target] if isinstance(line, ast.AnnAssign) else targets
                names |= {target.id for target in targets if text and isinstance(target, ast.Name)}
    return found


def test_blocks_are_found_with_their_titles_and_reasons() -> None:
    page = '<!-- not run: why -->\n\n```python\nx\n```\n```text title="prints"\ny\n\n```\n'
    first, second = blocks_of(page)
    assert (first.language, first.text, first.reason, first.line) == ("python", "x\n", "why", 3)
    assert (second.language, second.title, second.text) == ("text", "prints", "y\n\n")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("threadloom train --out runs/a --set delay=2", None),
        ("threadloom --help", None),
        ("threadloom trian --out runs/a", "No such command"),
        ("threadloom train --out runs/a --fast", "No such option"),
        ("threadloom train --out runs/a --set thread.forward=1", "unknown setting"),
        ("make train STEPS=10", None),
        ("make tea", "no such target"),
        ("python -m examples.nothing", "no such module"),
        ("ls -l", None),
    ],
)
def test_wrong_commands_are_noticed(command: str, problem: str | None) -> None:
    found = problem_with(shlex.split(command))
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("sentence", "shared"), [("Two blocks.", False), ("The blocks of this page\nbelong together.", True)]
)
def test_blocks_share_names_only_if_the_page_says_so(sentence: str, shared: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{sentence}\n\n```python\nname = 1\n```\n\n```python\nprint(name)\n```\n", encoding="utf-8")
    if shared:
        assert [output for _, _, output in run_page(page, tmp_path)] == ["", "1\n"]
    else:
        with pytest.raises(NameError):
            list(run_page(page, tmp_path))


def test_outputs_are_compared_as_their_title_says() -> None:
    assert normalised("b\na\n", "prints") == ["b", "a"]
    assert normalised("b\na\n", "prints, in any order") == ["a", "b"]
    assert normalised("x  12.5 % of 3,000", "prints, for example") == normalised("x 7 % of 1", "prints, for example")


def rewrite(path: Path) -> None:
    """Write the output of the blocks of a page into the page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        os.environ["XDG_CACHE_HOME"] = temporary
        outputs = [(shown, output) for _, shown, output in run_page(path, Path(temporary)) if shown is not None]
    for shown, output in reversed(outputs):
        lines[shown.line : shown.line + len(shown.text.splitlines())] = [
            line.rstrip() for line in output.rstrip().splitlines()
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name).resolve())
