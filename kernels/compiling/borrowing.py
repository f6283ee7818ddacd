"""Analysis of a kernel's intermediate code: which arrays and tuples it only borrows from its caller.

Numba counts the references to every array that a variable holds, one by one also if the variable is a tuple: a copy of
a model's weights increments some fifty counters and decrements them again, and LLVM takes a quarter of the time of the
whole backward pass to find out that all of that is for nothing. A kernel that allocates no array and returns none needs
no counters: its caller holds what the arguments refer to for as long as the call lasts.

That is used for kernels of many arrays, which pass them on to others. The kernels that compute have few; they would
gain nothing, and LLVM might order their sums in another way.

If Numba had an operation that allocates and is listed here as one that does not, the memory would not be freed; an
array could never be freed too early.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numba.core import ir, types
from numba.core.types.containers import BaseNamedTuple, BaseTuple

View = tuple[str, tuple[int, ...]]
"""A part of an argument: its name, and the index of a field in it, of a field of that field, and so on."""

TypeOf = Callable[[str], Any]
"""Function that returns the type of a variable."""
Counted = Callable[[Any], bool]
"""Function that tells which types have reference counts."""

_MANY = 32  # arrays in all arguments
_VIEWS = ("ctypes", "T")  # attributes of an array that refer to its memory
_KEEPS = ("static_getitem", "build_tuple", "exhaust_iter", "cast", "null", "undef")
_RESHAPE = "array.reshape"


def borrows_everything(
    blocks: Mapping[int, ir.Block],
    type_of: TypeOf,
    returned: Any,
    counted: Counted,
) -> bool:
    """Return True if the kernel has many arrays and needs no reference counts, which types have that are `counted`."""
    statements = list(_statements(blocks))
    arguments = [type_of(s.target.name) for s in statements if isinstance(s, ir.Assign) and isinstance(s.value, ir.Arg)]
    if counted(returned) or not all(_is_plain(argument, counted) for argument in arguments):
        return False
    if sum(map(_arrays_in, arguments)) < _MANY:
        return False
    return all(_borrows(statement, type_of, counted) for statement in statements)


def views_of_arguments(blocks: Mapping[int, ir.Block], type_of: TypeOf) -> dict[str, View]:
    """Return the variables that are always a whole argument, or always the same part of one; only those of tuples.

    An argument is named by the variable that has its value from the start on, which is among the keys, too.
    """
    assignments = [s for s in _statements(blocks) if isinstance(s, ir.Assign)]
    count = Counter(s.target.name for s in assignments)
    views: dict[str, View] = {}
    changed = True
    while changed:
        changed = False
        for s in assignments:
            name = s.target.name
            if name in views or count[name] > 1 or not isinstance(type_of(name), BaseTuple):
                continue
            if view := _view(s, views, type_of):
                views[name] = view
                changed = True
    return views


def field_of(value: Any, type_of: TypeOf) -> int | None:
    """Return the index of the field of a tuple that an expression reads, or None if that is not what it does."""
    if not isinstance(value, ir.Expr) or value.op not in ("getattr", "static_getitem"):
        return None
    kind = type_of(value.value.name)
    if value.op == "getattr":
        named = isinstance(kind, BaseNamedTuple) and value.attr in kind.fields
        return kind.fields.index(value.attr) if named else None
    index = value.index
    return index if isinstance(kind, BaseTuple) and type(index) is int and 0 <= index < len(kind) else None


def _view(s: ir.Assign, views: Mapping[str, View], type_of: TypeOf) -> View | None:
    """Return the part of an argument that a statement assigns, if it does, given those that are known."""
    value = s.value
    if isinstance(value, ir.Arg):
        return s.target.name, ()
    if isinstance(value, ir.Var):
        return views.get(value.name) if type_of(value.name) == type_of(s.target.name) else None
    index = field_of(value, type_of)
    if index is None or value.value.name not in views or type_of(value.value.name)[index] != type_of(s.target.name):
        return None
    argument, path = views[value.value.name]
    return argument, (*path, index)


def _statements(blocks: Mapping[int, ir.Block]) -> Iterator[Any]:
    for block in blocks.values():
        yield from block.body


def _is_plain(kind: Any, counted: Counted) -> bool:
    """Return True for numbers, arrays, and tuples of them: through any other type a kernel could keep a reference."""
    if isinstance(kind, BaseTuple):
        return all(_is_plain(member, counted) for member in kind.types)
    return type(kind) is types.Array or not counted(kind)


def _arrays_in(kind: Any) -> int:
    return sum(map(_arrays_in, kind.types)) if isinstance(kind, BaseTuple) else int(isinstance(kind, types.Array))


def _borrows(s: Any, type_of: TypeOf, counted: Counted) -> bool:
    """Return True if a statement creates no reference that has to be released."""
    if isinstance(s, ir.DynamicRaise | ir.DynamicTryRaise | ir.Yield):
        return False
    if not isinstance(s, ir.Assign) or not counted(type_of(s.target.name)):
        return True
    value = s.value
    if not isinstance(value, ir.Expr):
        return isinstance(value, ir.Arg | ir.Var)
    if value.op == "call":
        called = type_of(value.func.name)
        is_reshape = isinstance(called, types.BoundFunction) and called.typing_key == _RESHAPE
        return is_reshape or isinstance(called, types.NamedTupleClass)
    if value.op == "getattr":
        return isinstance(type_of(value.value.name), BaseTuple) or value.attr in (*_VIEWS, "reshape")
    if value.op == "getitem":
        return not counted(type_of(value.index.name))  # an index of arrays copies
    return value.op in _KEEPS
