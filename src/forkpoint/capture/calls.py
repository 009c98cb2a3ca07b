"""Replaces `nn.Module.__call__` while a run lasts, so that every module call is seen.

Where it can, it replaces the `__code__` of the function and leaves the class alone: to set an attribute of `nn.Module`
takes half a millisecond in a model of a few hundred modules, setting it back as long again, and each time Python drops its
method caches for all subclasses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from forkpoint.support.restoring import undone

Makes = Callable[..., Any]
"""A function that calls a module: `makes(module, *args, **kwargs)` returns what the module returns."""


class StandIn(list[Makes]):
    """A list that can be hashed, since it becomes a constant of a code object, and hashing code hashes its constants."""

    def __hash__(self) -> int:  # type: ignore[override]
        return object.__hash__(self)


_stand_in = StandIn([nn.Module.__call__])
"""Its one entry calls modules while `nn.Module.__call__` has the code of `_detour`."""


def _detour(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    stand_in: Any = (
        "_stand_in"  # `detour` puts the list in place of this constant: the globals are another function's
    )
    return stand_in[0](self, *args, **kwargs)


def detour(template: FunctionType, stand_in: list[Makes]) -> CodeType:
    """Code that makes a function call the first entry of a list instead of what it did.

    It is made once, not for every run: debuggers and profilers that keep the code of all frames would keep each copy.

    Args:
        template: a function with the parameters of the one to be replaced, which calls `"_stand_in"[0]`.
        stand_in: the list; it takes the place of the constant "_stand_in".
    """
    code = template.__code__
    return code.replace(
        co_consts=tuple(stand_in if value == "_stand_in" else value for value in code.co_consts)  # pyright: ignore[reportArgumentType]
    )


_PARAMETERS = [(p.name, p.kind) for p in inspect.signature(_detour).parameters.values()]
_DETOUR = detour(_detour, _stand_in)
_ASKS = frozenset({"_compiled_call_impl", "_call_impl"})
"""What torch's own code looks up to make a call."""


class Caller:
    """`nn.Module.__call__` as it was when a run began.

    Attributes:
        original: calls a module as before, also while something else is in place.
        is_torchs: whether it is torch's own function, which for a module that isn't compiled does no more than call
            `_call_impl`.
    """

    def __init__(self) -> None:
        self._function: Any = nn.Module.__call__
        self.original: Makes = self._function
        self._code: CodeType | None = None
        self._stood_in = _stand_in[0]
        self.is_torchs = False
        if _has_code_to_change(self._function):
            self._code = code = self._function.__code__
            self.original = self._stood_in if code is _DETOUR else copy_of(self._function)
            torchs = self._function is nn.Module.__dict__.get("_wrapped_call_impl")
            self.is_torchs = torchs and frozenset(code.co_names) == _ASKS

    @contextmanager
    def replaced(self, by: Makes) -> Generator[None]:
        """Within the block, `by` makes all calls of modules."""
        with undone(self._put_back):
            if self._code is None:
                nn.Module.__call__ = _as_method(by, self._function)  # type: ignore[method-assign]
            else:
                _stand_in[0], self._function.__code__ = by, _DETOUR
            yield

    @contextmanager
    def as_before(self) -> Generator[None]:
        """Within the block, modules are called as before the run, also inside `replaced`."""
        now = nn.Module.__call__, _stand_in[0]
        self._put_back()
        try:
            yield
        finally:
            if self._code is None:
                nn.Module.__call__ = now[0]  # type: ignore[method-assign]
            else:
                _stand_in[0], self._function.__code__ = now[1], _DETOUR

    def _put_back(self) -> None:
        if self._code is None:
            nn.Module.__call__ = self._function  # type: ignore[method-assign]
        else:
            self._function.__code__, _stand_in[0] = (
                self._code,
                self._stood_in,
            )  # in this order: others may call


def _as_method(makes: Makes, like: Any) -> Callable[..., Any]:
    """A function that can be set as a method of a class, with the name and the docstring of another."""

    @wraps(like)
    def call(*args: Any, **kwargs: Any) -> Any:
        return makes(*args, **kwargs)

    return call


_last: list[Any] = [None, None, False]
"""The last question to `_has_code_to_change` (function and code) and its answer, since the check takes as long as a layer."""


def _has_code_to_change(function: Any) -> bool:
    """Whether a function can be given the code of `_detour` and keep its signature for `inspect`."""
    if not isinstance(function, FunctionType):
        return False
    if function is not _last[0] or function.__code__ is not _last[1]:
        _last[:] = function, function.__code__, _looks_the_same(function)
    return _last[2]


def _looks_the_same(function: FunctionType) -> bool:
    return (
        function.__closure__ is None
        and not hasattr(function, "__wrapped__")
        and [(p.name, p.kind) for p in inspect.signature(function).parameters.values()] == _PARAMETERS
    )


def copy_of(function: FunctionType) -> FunctionType:
    """A second function object with the same code, which stays as it is when the first is given other code."""
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
