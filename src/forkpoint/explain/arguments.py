"""What differs between two calls, or two models, besides tensors: scalar arguments and entries of the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from forkpoint.capture.functions import ALWAYS_VIEWS, parameter_names
from forkpoint.capture.recorder import CopiedCall
from forkpoint.result import ArgumentComparison
from forkpoint.runs.modules import attribute_of

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
_DIMENSIONS = ("dim", "dim0", "dim1", "dims", "axis", "start_dim", "end_dim", "dimension")
"""Arguments that count dimensions, from the first on or, if negative, from behind the last."""
_NOTHING = (None, False, 0.0)
"""Values that say as much as an argument that is not given."""
_NAMES = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Entries of a configuration that say where it comes from, or what a report says elsewhere."""


def compare_arguments(a: CopiedCall, b: CopiedCall) -> tuple[ArgumentComparison, ...]:
    """The arguments of two calls of an op that are no tensors and differ; sizes, which follow from the layout, apart.

    >>> from forkpoint.capture.trace import Op
    >>> called = lambda dim: CopiedCall(Op("", "softmax", None), 0, 0, None, (torch.ones(2),), {"dim": dim}, (), {}, ())
    >>> compare_arguments(called(0), called(-1))
    ()
    >>> compare_arguments(called(None), called(-1))
    (ArgumentComparison(name='dim', value_a='None', value_b='0'),)
    """
    if a.op.function in _OF_SIZES:
        return ()
    mine, theirs = _scalars(a), _scalars(b)
    comparisons: list[ArgumentComparison] = []
    for name in dict.fromkeys((*mine, *theirs)):
        one, other = mine.get(name), theirs.get(name)
        silent = (name not in mine and other in _NOTHING) or (name not in theirs and one in _NOTHING)
        if one != other and not silent:
            texts = (repr(values[name]) if name in values else "" for values in (mine, theirs))
            comparisons.append(ArgumentComparison(name, *texts))
    return tuple(comparisons)


def _scalars(call: CopiedCall) -> dict[str, Any]:
    names = parameter_names(call.op.function, len(call.args), call.func, call.args)
    arguments = {**dict(zip(names, call.args, strict=True)), **call.kwargs}
    rank = next((value.dim() for value in arguments.values() if isinstance(value, torch.Tensor)), 0)
    return {
        name: _counted(value, rank) if name in _DIMENSIONS else value
        for name, value in arguments.items()
        if _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))  # pyright: ignore[reportUnknownArgumentType]
    return isinstance(value, (bool, int, float, str, torch.dtype, type(None)))


def _counted(value: Any, rank: int) -> Any:
    """Dimensions counted from the first: the last of three is 2, also where it is called -1."""
    if isinstance(value, (tuple, list)):
        return tuple(_counted(one, rank) for one in value)  # pyright: ignore[reportUnknownVariableType]
    return value + rank if type(value) is int and value < 0 else value


def compare_configurations(a: nn.Module | None, b: nn.Module | None) -> tuple[ArgumentComparison, ...]:
    """The entries in which the configurations of two models (of transformers, mappings, dataclasses) differ, nested ones by their path."""
    if a is b:
        return ()
    mine, theirs = (dict(_entries(attribute_of(model, "config"))) for model in (a, b))
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
    if isinstance(entries, SimpleNamespace) or is_dataclass(entries):
        entries = {
            name: value for name, value in vars(entries).items() if _is_plain(value) or _is_nested(value)
        }
    if not isinstance(entries, Mapping):
        return
    for name, value in entries.items():  # pyright: ignore[reportUnknownVariableType]
        if name in _NAMES:
            continue
        if _is_nested(value) and value:
            yield from _entries(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _is_nested(value: Any) -> bool:
    return isinstance(value, (Mapping, SimpleNamespace)) or is_dataclass(value)
