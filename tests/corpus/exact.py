"""Plain runs of one side of a case, in the model's own dtype or in float64. Knows nothing of forkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .case import Pair, Side

_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_CASTS: tuple[Callable[..., Any], ...] = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


class _Float64(TorchFunctionMode):
    """Answers every request for a narrower floating dtype with float64: models cast to float32 by name."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        args = tuple(_widen(arg) for arg in args)
        if getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm"):
            return _grouped(*args, **(kwargs or {}))
        kwargs = {name: _widen(value) for name, value in (kwargs or {}).items()}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in _NARROW:
            return out.double()
        return out


def _grouped(tokens: Tensor, weights: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """The grouped matmul of experts, which has no float64 kernel: [tokens, in] by [experts, in, out]."""
    edges = [0, *offs.tolist()]
    parts = [tokens[edges[n] : edges[n + 1]] @ weights[n].double() for n in range(len(edges) - 1)]
    return torch.cat([*parts, tokens.new_zeros(tokens.shape[0] - edges[-1], weights.shape[-1])])


def _widen(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    return value.double() if isinstance(value, Tensor) and value.dtype in _NARROW else value


@contextmanager
def _exactly() -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def outputs(side: Side, *, exact: bool = False, seed: int | None = 0) -> list[Any]:
    """What the calls of a side return, made with a copy of the model; in float64 if `exact`."""
    model = copy.deepcopy(side.model)
    if exact:
        model.double()
    if seed is not None:
        torch.manual_seed(seed)
    returned: list[Any] = []
    cache: dict[str, Any] = {}
    with torch.no_grad():
        for inputs in side.calls:
            given = {name: copy.deepcopy(value) for name, value in inputs.items()}
            if exact:
                given = {name: _double(value) for name, value in given.items()}
            given = {**cache, **given}
            if exact:
                with _exactly():
                    output = _call(side, model, given)
            else:
                output = _call(side, model, given)
            returned.append(copy.deepcopy(output))
            cache = _cache(output, side.model)
    return returned


def _call(side: Side, model: Any, inputs: dict[str, Any]) -> Any:
    return side.call(model, inputs) if side.call is not None else model(**inputs)


def _cache(output: Any, model: Any) -> dict[str, Any]:
    """The cache that a call returned, under the name that the model takes; transformers has had several for it."""
    names = ("cache", "past_key_values", "cache_params")
    fields = dict(output.items()) if isinstance(output, Mapping) else {}
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    takes = inspect.signature(model.forward).parameters
    return {} if value is None else {next((name for name in names if name in takes), names[0]): value}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        for name in list(value):
            value[name] = _double(value[name])  # pyright: ignore[reportIndexIssue]
    return value


def picked(side: Side, **how: Any) -> Tensor:
    return side.pick(outputs(side, **how)).double()


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value; NaN on one side only is infinite."""
    assert a.shape == b.shape, f"the case picks {tuple(a.shape)} of run a and {tuple(b.shape)} of run b"
    if bool((a.isnan() != b.isnan()).any()):
        return float("inf")
    a, b = a.nan_to_num(), b.nan_to_num()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


def sound_unpatched(pair: Pair) -> None:
    """A check for patched cases: the patch alone is the fault."""
    left = gap(picked(pair.a, exact=True), picked(pair.b, exact=True))
    assert left < 1e-12, f"a gap of {left:.2g} in float64 without the patch"
