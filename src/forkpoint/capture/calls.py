"""What makes the calls of all modules, `nn.Module.__call__`, and something else in its place while a run lasts.

The class is left as it is where that can be: to set an attribute of it costs half a millisecond in a model of a few
hundred modules, as does to set it back, and whatever Python has found out about any class of modules is lost each time. So
the function of the class is given other code instead.
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
"""Makes the call of a module: `makes(module, *args, **kwargs)`."""


class StandIn(list[Makes]):
    """A list that can be hashed: it becomes a constant of code, and hashing code hashes its constants."""

    def __hash__(self) -> int:  # type: ignore[override]
        return object.__hash__(self)


_stand_in = StandIn([nn.Module.__call__])
"""What makes calls where the function of the class has the code of `_detour`."""


def _detour(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    stand_in: Any = (
        "_stand_in"  # `detour` puts the list in place of this constant: the globals are another function's
    )
    return stand_in[0](self, *args, **kwargs)


def detour(template: FunctionType, stand_in: list[Makes]) -> CodeType:
    """Code for a function that calls what is in a list in its place.

    It is made once: a debugger or profiler that keeps the code of all frames would keep each one that is made anew.

    Args:
        template: a function of the same parameters that calls the first of a constant, "_stand_in".
        stand_in: the list, with a hash.
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
        original: makes the call of a module, whatever stands in.
        is_torchs: whether all it does, for a module that is not compiled, is to call its `_call_impl`.
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
        """Have something else make the calls."""
        with undone(self._put_back):
            if self._code is None:
                nn.Module.__call__ = _as_method(by, self._function)  # type: ignore[method-assign]
            else:
                _stand_in[0], self._function.__code__ = by, _DETOUR
            yield

    @contextmanager
    def as_before(self) -> Generator[None]:
        """Make calls as before, for a while."""
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
    """What can be a method, of the name of another."""

    @wraps(like)
    def call(*args: Any, **kwargs: Any) -> Any:
        return makes(*args, **kwargs)

    return call


_last: list[Any] = [None, None, False]
"""The function and the code that `_has_code_to_change` was asked for last, and its answer: it takes as long as a layer."""


def _has_code_to_change(function: Any) -> bool:
    """Whether a function can be given the code of `_detour` and still look the same to whoever asks for its signature."""
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
    """The same function, which keeps its code."""
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
