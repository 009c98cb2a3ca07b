"""Calls that need no arithmetic: what they ask for is how a tensor lies, or of what dtype it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from forkpoint.promotion.arguments import Args, Kwargs, hidden
from forkpoint.promotion.dtypes import READABLE, WIDE
from forkpoint.promotion.values import Values

Function: TypeAlias = Callable[..., Any]


def read(func: Function, args: Args, kwargs: Kwargs) -> Any:
    """The call as it is: it makes no tensor."""
    return func(*args, **kwargs)


def restride(values: Values, func: Function, args: Args, kwargs: Kwargs) -> Any:
    """A change of how a tensor lies, which counts as a write though it changes no value."""
    result = func(*args, **kwargs)
    with hidden():
        values.acknowledge(args[0])
    return result


def pointer(values: Values, func: Function, args: Args, _: Kwargs) -> Any:
    """The address of a tensor's float64 form: who asks (a Triton launch does) was told that it holds float64."""
    with hidden():
        wide = values.writable(args[0])
    return func(wide)


def like(func: Function, args: Args, kwargs: Kwargs) -> Any:
    """A new tensor of the shape and device of another, in float64; the other's values need not be cast."""
    model = args[0] if args else kwargs.get("input")
    with hidden():
        if isinstance(model, torch.Tensor) and kwargs.get("dtype") is None and model.dtype in WIDE:
            kwargs = {**kwargs, "dtype": WIDE[model.dtype]}
        elif kwargs.get("dtype") in WIDE:
            kwargs = {**kwargs, "dtype": WIDE[kwargs["dtype"]]}
    return func(*args, **kwargs)


def set_data(values: Values, func: Function, args: Args, kwargs: Kwargs) -> Any:
    """``tensor.data = other``."""
    target, data = args
    with hidden():
        if target.dtype in WIDE and (data.dtype in READABLE or data.dtype in WIDE.values()):
            return values.set_data(target, data, func)
    return func(*args, **kwargs)
