"""By which call an answer came about, as a reader would write it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LENGTH = 60
"""Longest text among the arguments that is written out."""


def says_call(function: Callable[P, R]) -> Callable[P, R]:
    """The record that a function returns says in its field `call` how the function was called.

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
        answer: Any = function(*args, **kwargs)
        given = parameters.bind(*args, **kwargs)
        said = ", ".join(_written(parameters, given.arguments))
        return replace(answer, call=f"fp.{function.__name__}({said})")

    return called


def _written(signature: inspect.Signature, given: dict[str, Any]) -> list[str]:
    """What has no default by its name, and of the rest what is plain and not the default."""
    found: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found += [f"{key}={value!r}" for key, value in given.get(name, {}).items() if _plain(value)]
        elif parameter.default is inspect.Parameter.empty:
            found.append(name)
        elif name in given and _plain(given[name]) and given[name] != parameter.default:
            found.append(f"{name}={given[name]!r}")
    return found


def _plain(value: Any) -> bool:
    """Whether it is written as it is: a number, a truth value, a short text; no model, and no list of prompts."""
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= _LENGTH)
    )
