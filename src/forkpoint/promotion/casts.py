"""Calls that ask for another dtype: ``.to(torch.bfloat16)``, ``.float()``, ``.type_as(x)``, ``torch.as_tensor``.

The request for a narrower dtype becomes one for float64. What remains to decide is whether the result is the
same memory, since the model may write to it next:

==========================  ===============================  ==============================================
the tensor                  is asked for                     and gives
==========================  ===============================  ==============================================
made by the run (float64)   float64                          itself, as a model in float64 would
made by the run (float64)   a narrower dtype by name         a copy, as a model in float64 would
narrow, from before         its own dtype, or float64,       itself, as natively; it stays narrow until it
                            which it says it is              is computed with
narrow, from before         another dtype                    a float64 copy
any                         no dtype (only a device)         itself, or its narrow copy on the device
any                         an integer dtype                 its value, truncated
any                         a quantised dtype (float8)       the float64 value, quantised
==========================  ===============================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forkpoint.promotion.dtypes import QUANTISED, WIDE, legacy_dtype, requested_dtype
from forkpoint.promotion.kinds import name_of
from forkpoint.promotion.values import Values


def cast_call(
    values: Values,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    compute: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    """The result of a cast under promotion; `compute` does what is no cast of a tensor after all."""
    source = args[0] if args else kwargs.get("data", kwargs.get("obj", kwargs.get("self")))
    if not isinstance(source, torch.Tensor):
        return compute(func, args, kwargs)  # torch.as_tensor of a list or an array
    name = name_of(func)
    with torch._C.DisableTorchFunction():
        wanted = requested_dtype(name, args, kwargs)
        if wanted is None:
            if name == "type":
                return _type_name(source)
            return _plain(func, args, kwargs, values.as_is(source))
        if wanted in QUANTISED or not (wanted.is_floating_point or wanted.is_complex):
            return _plain(func, args, kwargs, values.of(source))
        own = values.dtype_from_before(source)
        # A narrow tensor says that it is float64, so that who asks it for float64 means its own dtype;
        # `double()` is another matter.
        if own is not None and wanted in (own, WIDE[own]) and name not in ("double", "cdouble"):
            value, dtype, copy = values.as_is(source), values.as_is(source).dtype, False
        else:
            value, dtype = values.of(source), WIDE.get(wanted, wanted)
            # The cast of a narrow tensor is a copy already, unless it is one that is kept for others.
            copy = (dtype is not wanted or own is not None) if value is source else values.keeps_copies()
    return _to(name, args, kwargs, value, dtype, copy=copy)


def _plain(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], source: torch.Tensor
) -> Any:
    if args:
        return func(source, *args[1:], **kwargs)
    return func(
        **{key: source if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}
    )


def _to(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    source: torch.Tensor,
    dtype: torch.dtype,
    *,
    copy: bool,
) -> Any:
    """The call for `dtype` instead of the dtype that it names, with whatever else it asks for."""
    device: Any = None
    rest: dict[str, Any] = {}
    positional: list[Any] = []
    for value in args[1:]:
        if isinstance(value, torch.Tensor):
            device = value.device
        elif isinstance(value, torch.dtype) or (name == "type" and legacy_dtype(value) is not None):
            if "cuda" in str(value):
                device = "cuda"
        elif isinstance(value, str | torch.device) or (
            type(value) is int and not positional and device is None
        ):
            device = value
        else:
            positional.append(value)
    for key, value in kwargs.items():
        if key == "device":
            device = value
        elif key == "other":
            device = value.device
        elif key in ("memory_format", "non_blocking", "copy") and value is not None:
            rest[key] = value
    if name == "to":  # to(…, non_blocking, copy)
        flags = zip(("non_blocking", "copy"), positional, strict=False)
        rest.update((key, value) for key, value in flags if value is not None)
    elif positional and isinstance(positional[0], torch.memory_format):
        rest["memory_format"] = positional[0]
    rest["copy"] = bool(rest.get("copy")) or copy
    return source.to(device=source.device if device is None else device, dtype=dtype, **rest)


def _type_name(source: torch.Tensor) -> str:
    text = source.type()
    if source.dtype in WIDE:
        for narrow in ("BFloat16Tensor", "FloatTensor", "HalfTensor"):
            if text.endswith("." + narrow):
                return text.removesuffix(narrow) + "DoubleTensor"
    return text
