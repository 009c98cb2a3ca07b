"""The unrounded probe: is what couples tokens the rounding of quantised values, and nothing else?

A scale taken over several tokens, or columns that an outlier sets aside, change *how finely* a value is rounded. With
rounding taken away, what is scaled down and back up is what it was, whatever the scale, and a column is the same set
aside or not. So the runs are made in float64 with every rounding replaced by the identity: if their gap does not fall to
noise there, something else couples the tokens (a scale that is not taken back, a column that is forgotten).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import Function, resolve
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.results import compare_results
from forkpoint.explain.session import Results, Session
from forkpoint.probes.deciding import is_continuous
from forkpoint.probes.watchers import OtherContent
from forkpoint.promotion import Promotion
from forkpoint.promotion.dtypes import requested_dtype

_MEAN_SHIFT = {"floor": -0.5, "floor_": -0.5, "ceil": 0.5, "ceil_": 0.5}
"""What a function that rounds adds to a value on average."""
_ROUNDING = frozenset({
    "round", "round_", "trunc", "trunc_", "fix", "fix_", "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
}) | set(_MEAN_SHIFT)  # fmt: skip
_CASTS = frozenset({"to", "type", "char", "byte"})
_UNCHANGED = 1e-9
"""Gap relative to the largest value that is float64's own rounding."""


class Unrounded(TorchFunctionMode):
    """Replaces rounding to steps, and casts to a dtype of eight bits, by the identity in a promoted run.

    Args:
        promotion: what the run is promoted by; it is entered first.
    """

    def __init__(self, promotion: Promotion) -> None:
        super().__init__()
        self._promotion = promotion

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function, kwargs = resolve(func), kwargs or {}
        if function.inner is not None:
            with self:
                return function.inner(*args, **kwargs)
        if not _rounds(function, args, kwargs):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            value = self._promotion.value(args[0])
            if not is_continuous(value):
                return func(*args, **kwargs)
            shift = _MEAN_SHIFT.get(function.name, 0.0)
            return value.add_(shift) if function.writes else value + shift


def _rounds(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not args or not isinstance(args[0], Tensor) or "out" in kwargs:
        return False
    if function.name in _CASTS:
        dtype = (
            torch.int8 if function.name in ("char", "byte") else requested_dtype(function.name, args, kwargs)
        )
        return dtype is not None and dtype.itemsize == 1 and dtype != torch.bool
    return function.name in _ROUNDING


def vanishes_unrounded(session: Session) -> bool:
    """Whether the runs agree in float64 with nothing rounded to steps.

    Where both runs are one and the same, it is that run with other content where the other run has none, against itself.
    """
    alone = session.a is session.b
    content = OtherContent(session.shared.may_enter_b) if alone else None
    try:
        a, b = _made(session, "a", None), _made(session, "b", content)
    except Exception as error:  # noqa: BLE001 - a model may need the whole numbers that it rounds to
        reraise_out_of_memory(error)
        return False
    results = compare_results(session, a, b).floating
    return bool(results) and all(result.gap.max_rel <= _UNCHANGED for result in results)


def _made(session: Session, name: str, watcher: OtherContent | None) -> Results:
    promotion = Promotion()

    def under() -> AbstractContextManager[Any]:
        return Unrounded(promotion)

    traced = session.a if name == "a" else session.b
    if watcher is None:
        return traced.in_float64(promotion, under=under)
    return traced.again(promotion=promotion, watcher=watcher, under=under)
