"""The modules behind a callable: in closures, bound methods, partial functions, attributes, and the names that code uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dis import get_instructions
from functools import partial
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_MOST = 10_000
"""Objects that are looked at, at most."""

_HOLDING_NOTHING = (type, ModuleType, Tensor, str, bytes, int, float, complex, bool, type(None))


def modules_behind(*values: Any) -> tuple[nn.Module, ...]:
    """The modules that can be reached from callables and other objects; of those that hold others, only these.

    >>> inner, outer = nn.ReLU(), nn.Sequential(nn.Linear(2, 2))
    >>> def call(inputs, head=inner):
    ...     return head(outer(inputs))
    >>> modules_behind(partial(call)) == (inner, outer)
    True
    >>> modules_behind(outer[0].forward, outer)
    (Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
    ),)
    """
    modules: list[nn.Module] = []
    seen: set[int] = set()
    waiting = list(values)
    for value in waiting:  # grows meanwhile
        if id(value) in seen or isinstance(value, _HOLDING_NOTHING) or len(seen) > _MOST:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            modules.append(value)
        else:
            waiting += _held_by(value)
    inside = [{id(part) for part in module.modules()} - {id(module)} for module in modules]
    return tuple(module for module in modules if not any(id(module) in parts for parts in inside))


def _held_by(value: Any) -> Iterable[Any]:
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, BuiltinMethodType):
        return (value.__self__,)
    if isinstance(value, FunctionType):
        return (*_named_by(value), *vars(value).values())
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    call = next((vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)), None)
    return (*_attributes_of(value), call)


def _attributes_of(value: Any) -> Iterator[Any]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from list(attributes.values())
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(value, name, None)


def _named_by(function: FunctionType) -> Iterator[Any]:
    """What a function's code has a name for: its defaults, its closure, and modules and functions among its globals."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        yield from _content(cell)
    for name in _names_in(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, (nn.Module, FunctionType, MethodType, partial)):
            yield value


def _content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return ()


def _names_in(code: CodeType) -> Iterator[str]:
    """The globals that code reads; names of attributes are no globals."""
    yield from (str(step.argval) for step in get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
