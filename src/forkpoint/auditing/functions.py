"""The audit of a function or a module of tensors: has a row, or a token, the same bits in a call of any size?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forkpoint.auditing.record import Accuracy, Audit, Break
from forkpoint.auditing.sizes import Deadline, first_change, thresholds
from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.runs.returned import results_of
from forkpoint.scene.replaying.profiling import kernels

_SHIFT = 5
"""By how many rows a call begins later."""


class CuttableFunction:
    """A function, and arguments of which some can be cut to fewer rows or tokens.

    Args:
        call: the function.
        arguments: its positional arguments, tensors or not.
        cut: by the place of an argument, the dimension that is cut.
        out: the dimension of the result that follows.
    """

    def __init__(
        self, call: Callable[..., Any], arguments: Sequence[Any], cut: Mapping[int, int], out: int
    ) -> None:
        self.call, self.arguments, self.cut, self.out = call, list(arguments), dict(cut), out
        sizes = {self.arguments[place].shape[dim] for place, dim in self.cut.items()}
        if len(sizes) != 1 or min(sizes) < 2:
            raise InputError(f"arguments of {sorted(sizes)} rows", "one number of rows, 2 or more")
        self.longest = sizes.pop()

    def made(self, size: int, start: int = 0) -> Tensor:
        """The result for that many rows from `start` on."""
        with torch.inference_mode():
            return first_tensor(self.call(*self._cut(size, start)))

    def same(self, one: int, other: int) -> bool:
        """Whether the rows that two calls share have the same bits."""
        shared = min(one, other)
        return equal(*(self.made(size).narrow(self.out, 0, shared) for size in (one, other)))

    def wide(self) -> Tensor:
        """The result for all rows in float64."""
        with torch.inference_mode():
            given = [
                one.double() if isinstance(one, Tensor) and one.is_floating_point() else one
                for one in self.arguments
            ]
            return first_tensor(self.call(*given))

    def kernels(self, size: int) -> tuple[str, ...]:
        """The kernels that a call of that many rows runs."""
        first = next(one for one in self.arguments if isinstance(one, Tensor))
        return kernels(lambda: self.made(size), first.device).names

    def _cut(self, size: int, start: int) -> list[Any]:
        given = list(self.arguments)
        for place, dim in self.cut.items():
            given[place] = given[place].narrow(dim, start, size)
        return given


def audit_function(
    name: str,
    function: CuttableFunction,
    *,
    reference: Callable[..., Any] | None,
    sizes: Sequence[int] | None,
    deadline: Deadline,
) -> Audit:
    """Compare calls of many sizes; see `audit`."""
    tried = sorted({*(sizes or thresholds(function.longest)), function.longest})
    whole = function.made(function.longest)
    breaking: list[int] = []
    changed: tuple[int, int] | None = None
    breaks: list[Break] = []
    before: tuple[int, Tensor] | None = None
    count, unfinished = 0, ""
    for size in tried:
        if deadline.over:
            unfinished = f"sizes from {size} on, for want of time"
            break
        made = function.made(size)
        count += 1
        if not equal(made, whole.narrow(function.out, 0, size)):
            breaking.append(size)
        if (
            changed is None
            and before is not None
            and not equal(before[1], made.narrow(function.out, 0, before[0]))
        ):
            changed = first_change(function.same, before[0], size)
        before = size, made
    if changed is None and breaking:
        changed = breaking[0], function.longest
    if changed is not None:
        breaks.append(_break(function, *changed))
    if len(function.cut) == 1 and not breaks and not deadline.over:
        breaks += _shifted(function, tried, whole)
    precision = _precision(function, whole, reference)
    return Audit(name, count, tuple(breaks), tuple(breaking), precision, unfinished)


def _break(function: CuttableFunction, one: int, other: int) -> Break:
    small, large = function.made(one), function.made(other).narrow(function.out, 0, one)
    words = f"the same rows have other bits in a call of {other} than of {one}"
    ran = function.kernels(other), function.kernels(one)
    return Break("rows", other, one, words, *distance(small, large), kernels=ran if any(ran) else None)


def _shifted(function: CuttableFunction, tried: Sequence[int], whole: Tensor) -> list[Break]:
    """The same rows at another place of the call."""
    for size in tried:
        if size + _SHIFT > function.longest:
            break
        made, held = function.made(size, _SHIFT), whole.narrow(function.out, _SHIFT, size)
        if not equal(made, held):
            words = f"{size} rows have other bits at the beginning of a call than {_SHIFT} rows later"
            return [Break("order", size, size, words, *distance(made, held))]
    return []


def _precision(
    function: CuttableFunction, whole: Tensor, reference: Callable[..., Any] | None
) -> Accuracy | None:
    if isinstance(function.call, torch.nn.Module) or not whole.is_floating_point():
        return None
    try:
        exact = function.wide()
        other = None if reference is None else first_tensor(reference(*function.arguments))
    except Exception as error:  # noqa: BLE001 - any function may refuse float64 in any way
        reraise_out_of_memory(error)
        return None
    if exact.dtype is not torch.float64 or exact.shape != whole.shape:
        return None
    scale = float(exact.abs().mean()) or 1.0
    figures = [
        (float(gap.mean()) / scale, float(gap.max()) / scale)
        for gap in ((one.double() - exact).abs() for one in (whole, other) if one is not None)
    ]
    return Accuracy(*figures[0], *(figures[1] if len(figures) > 1 else ()))


def first_tensor(result: Any) -> Tensor:
    """A result, or the first tensor in it."""
    if isinstance(result, Tensor):
        return result
    for one in results_of(result).values():
        return one
    raise InputError("a function that returns no tensor", "one that returns a tensor")


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two results have the same bits; NaN equals NaN."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def distance(one: Tensor, other: Tensor) -> tuple[int, int, float]:
    """How many values differ, of how many, and the largest distance."""
    if one.shape != other.shape:
        return max(one.numel(), other.numel()), max(one.numel(), other.numel()), float("inf")
    gap = (one.double() - other.double()).abs()
    return int((gap != 0).sum()), gap.numel(), float(gap.max())
