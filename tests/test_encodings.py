"""Text files and pipes have an explicit encoding: the default is the locale's, which may be ASCII or Latin-1."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = {"read_text", "write_text"}


def without_encoding(source: str) -> list[int]:
    """Return the lines of a module that open a text file or pipe in the encoding of the locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        is_method = isinstance(call.func, ast.Attribute)
        # Path.read_text(encoding) and Path.write_text(data, encoding); functions of this project have the same names.
        text = is_method and name in METHODS and len(call.args) < (1 if name == "read_text" else 2)
        if name == "open" and not is_method:
            mode = call.args[1] if len(call.args) > 1 else keywords.get("mode")
            text = not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
        if (text or ("text" in keywords and name in {"run", "Popen", "check_output"})) and "encoding" not in keywords:
            found.append(call.lineno)
    return found


def test_the_check_finds_calls_without_an_encoding() -> None:
    source = 'p.read_text()\np.write_text("x")\nopen(p)\nopen(p, "w")\nsubprocess.run(c, text=True)\n'
    explicit = 'p.read_text("utf-8")\np.write_text("x", encoding="utf-8")\nopen(p, "rb")\nread_text([])\nx.open(p)\n'
    assert without_encoding(source + explicit) == [1, 2, 3, 4, 5]


def test_every_text_file_has_an_encoding() -> None:
    files = [
        path for package in ("kernels", "pipeline", "stages", "examples") for path in (ROOT / package).rglob("*.py")
    ]
    assert len(files) > 200
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert found == set()
