"""Digests of the source files that the machine code of a kernel was compiled from.

A compiled kernel contains the code of its callees, which come from the files that its own file imports, directly or
through others. A digest of those files tells whether the machine code is up to date; an edit of any other file of the
package leaves it valid. The files of `compiling` belong to every digest, because they decide how a kernel is compiled.

The imports are read from the text of the files, so that nothing needs to be loaded. A name that a package re-exports
stands for the file that defines it. Whatever is written in another way than `from threadloom.kernels... import names`
counts as an import of the whole package.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

_FROM = re.compile(r"^[ \t]*from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n(]+)", re.MULTILINE)
_OTHER = re.compile(r"^[ \t]*import[ \t][^\n]*\bthreadloom\.kernels|\bimport_module\([^\n]*threadloom", re.MULTILINE)
_COMMENT = re.compile(r"#[^\n]*")


class SourceDigests:
    """The source files of a package of kernels, and what they import of each other.

    A module has its dotted name relative to the package: `common.gelu`; a package has the name of its folder, the whole
    package an empty one.
    """

    def __init__(self, folder: Path, package: str) -> None:
        """Read the files in `folder`, whose modules are imported as `package`."""
        self._package = package
        self._sources: dict[str, bytes] = {}
        self._folders: set[str] = set()
        whole = hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            is_folder = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_folder else parts)
            self._sources[name] = path.read_bytes()
            if is_folder:
                self._folders.add(name)
            whole.update(str(path.relative_to(folder)).encode() + b"\0" + self._sources[name])
        self.whole = whole.hexdigest()
        """Digest of all files."""
        self._imports: dict[str, frozenset[str]] = {}
        self._exported: dict[str, dict[str, tuple[str, list[str]]]] = {}
        self._digests: dict[str, str] = {}

    def of_module(self, name: str) -> str:
        """Return the digest of the files that the machine code of a kernel in a module depends on.

        `name` is the absolute name of the module; one outside of the package gets the digest of all files.
        """
        relative = self._relative(name)
        if relative is None or relative not in self._sources or relative in self._folders:
            return self.whole
        if relative not in self._digests:
            digest = hashlib.sha256()
            for module in sorted(self.files_of(relative)):
                digest.update(module.encode() + b"\0" + self._sources[module])
            self._digests[relative] = digest.hexdigest()
        return self._digests[relative]

    def files_of(self, module: str) -> frozenset[str]:
        """Return the modules whose source the code of a module depends on, itself included."""
        found, waiting = {module} | self._compiling, [module]
        while waiting:
            for imported in self._imported(waiting.pop()):
                if imported not in found:
                    found.add(imported)
                    waiting.append(imported)
        return frozenset(found)

    @cached_property
    def _compiling(self) -> frozenset[str]:
        return frozenset(name for name in self._sources if f"{name}.".startswith("compiling."))

    def _imported(self, module: str) -> frozenset[str]:
        """Return the modules that a module imports directly."""
        if module not in self._imports:
            text = self._sources[module].decode()
            if _OTHER.search(text):
                self._imports[module] = frozenset(self._sources)
            else:
                self._imports[module] = frozenset(
                    file for source, names in self._statements(text) for file in self._files(source, names)
                )
        return self._imports[module]

    def _statements(self, text: str) -> Iterator[tuple[str, list[str]]]:
        """Yield (module, names) of the imports from the package in a text."""
        for source, names in _FROM.findall(text):
            if source.startswith("."):
                yield "", ["*"]
            elif (relative := self._relative(source)) is not None:
                listed = _COMMENT.sub("", names).strip("()").split(",")
                yield relative, [name.split()[0] for name in listed if name.strip()]

    def _files(self, source: str, names: Iterable[str]) -> Iterator[str]:
        """Yield the modules that define `names`, imported from the module `source`."""
        for name in names:
            inner = f"{source}.{name}".lstrip(".")
            if name == "*" or source not in self._sources:
                yield from self._sources
            elif source not in self._folders:
                yield source
            elif name in (exports := self._exports(source)):
                yield from self._files(*exports[name])
            elif inner in self._sources and inner not in self._folders:
                yield inner
            else:
                yield from self._sources

    def _exports(self, folder: str) -> dict[str, tuple[str, list[str]]]:
        """Return name → (module, [name]) of the names that the `__init__.py` of a folder re-exports."""
        if folder not in self._exported:
            statements = self._statements(self._sources[folder].decode())
            self._exported[folder] = {name: (source, [name]) for source, names in statements for name in names}
        return self._exported[folder]

    def _relative(self, name: str) -> str | None:
        """Return the name of a module relative to the package; None for one outside of it."""
        if name == self._package:
            return ""
        return name.removeprefix(f"{self._package}.") if name.startswith(f"{self._package}.") else None
