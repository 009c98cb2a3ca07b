"""By which call an answer came about, as a reader would write it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from forkpoint.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_LENGTH = 60
"""Longest text among the arguments that is written out."""


def says_call(function: Callable[P, R]) -> Callable[P, R]:
    """The record that a function returns says in its field `call` how the function was called.

    An argument of a name that the function does not have is an `InputError`, also where it takes `Unpack[...]` of a record
    of options, which Python doesn't check.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Answer:
    ...     call: str = ""
    >>> @says_call
    ... def padding(model, prompts, pad_to=None, side="right"):
    ...     return Answer()
    >>> padding(object(), ["Hello"], 50).call
    'fp.padding(model, prompts, pad_to=50)'
    """
    parameters = inspect.signature(function)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        _check_names(function, parameters, kwargs)
        answer: Any = function(*args, **kwargs)
        bound = parameters.bind(*args, **kwargs)
        text = ", ".join(_written(parameters, bound.arguments))
        return replace(answer, call=f"fp.{function.__name__}({text})")

    return called


def _check_names(function: Callable[..., Any], signature: inspect.Signature, names: Collection[str]) -> None:
    allowed = [
        name
        for one in signature.parameters.values()
        for name in (_options(function, one) if one.kind is inspect.Parameter.VAR_KEYWORD else (one.name,))
    ]
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise InputError(
            f"fp.{function.__name__} has no argument {', '.join(unknown)}", f"one of {', '.join(allowed)}"
        )


def _options(function: Callable[..., Any], parameter: inspect.Parameter) -> Collection[str]:
    """The names that `**options: Unpack[Options]` stands for."""
    record = parameter.annotation.removeprefix("Unpack[").removesuffix("]")
    return inspect.unwrap(function).__globals__[record].__annotations__


def _written(signature: inspect.Signature, values: dict[str, Any]) -> list[str]:
    """What has no default by its name, and of the rest what is plain and not the default."""
    arguments: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments += [f"{key}={value!r}" for key, value in values.get(name, {}).items() if _plain(value)]
        elif parameter.default is inspect.Parameter.empty:
            arguments.append(name)
        elif name in values and _plain(values[name]) and values[name] != parameter.default:
            arguments.append(f"{name}={values[name]!r}")
    return arguments


def _plain(value: Any) -> bool:
    """Whether it is written as it is: a number, a truth value, a short text; no model, and no list of prompts."""
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= _LENGTH)
    )
