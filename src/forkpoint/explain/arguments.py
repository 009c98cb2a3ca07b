"""What differs between two calls, or two models, besides tensors: scalar arguments and entries of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from forkpoint.capture.functions import ALWAYS_VIEWS, parameter_names
from forkpoint.capture.recorder import Taken
from forkpoint.result import ArgumentComparison

_OF_SIZES = ALWAYS_VIEWS | {
    "reshape",
    "getitem",
    "setitem",
    "arange",
    "zeros",
    "ones",
    "full",
    "empty",
    "repeat",
    "roll",
}
"""Functions whose numbers follow from the layout: they differ wherever the two runs have other lengths."""
_NOTHING = (None, False, 0.0)
"""Values that say as much as an argument that is not given."""
_NAMES = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Entries of a configuration that say where it comes from, or what a report says elsewhere."""


def compare_arguments(a: Taken, b: Taken) -> tuple[ArgumentComparison, ...]:
    """The arguments of two calls of an op that are no tensors and differ; sizes, which follow from the layout, apart.

    >>> from forkpoint.capture.trace import Op
    >>> called = lambda dim: Taken(Op("", "softmax", None), 0, 0, None, (torch.ones(2),), {"dim": dim}, (), {}, ())
    >>> compare_arguments(called(0), called(-1))
    (ArgumentComparison(name='dim', value_a='0', value_b='-1'),)
    """
    if a.op.function in _OF_SIZES:
        return ()
    mine, theirs = _scalars(a), _scalars(b)
    found: list[ArgumentComparison] = []
    for name in dict.fromkeys((*mine, *theirs)):
        one, other = mine.get(name), theirs.get(name)
        silent = (name not in mine and other in _NOTHING) or (name not in theirs and one in _NOTHING)
        if one != other and not silent:
            texts = (repr(values[name]) if name in values else "" for values in (mine, theirs))
            found.append(ArgumentComparison(name, *texts))
    return tuple(found)


def _scalars(taken: Taken) -> dict[str, Any]:
    names = parameter_names(taken.op.function, len(taken.args))
    given = {**dict(zip(names, taken.args, strict=True)), **taken.kwargs}
    plain = (bool, int, float, str, torch.dtype, type(None))
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, plain)
        or (isinstance(value, (tuple, list)) and all(isinstance(v, plain) for v in value))
    }


def compare_configurations(a: nn.Module | None, b: nn.Module | None) -> tuple[ArgumentComparison, ...]:
    """The entries in which the configurations of two models of transformers differ, nested ones by their path."""
    if a is b:
        return ()
    mine, theirs = (dict(_entries(getattr(model, "config", None))) for model in (a, b))
    if not mine or not theirs:
        return ()
    names = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    return tuple(
        ArgumentComparison(name, *(repr(v[name]) if name in v else "" for v in (mine, theirs)))
        for name in names
    )


def _entries(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    to_dict = getattr(config, "to_dict", None)
    entries: Any = to_dict() if callable(to_dict) else config
    if not isinstance(entries, Mapping):
        return
    for name, value in entries.items():  # pyright: ignore[reportUnknownVariableType]
        if name in _NAMES:
            continue
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
