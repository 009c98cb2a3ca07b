"""The audit of a function or a module of tensors: has a row, or a token, the same bits in a call of any size?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from forkpoint.auditing.record import Accuracy, Audit, Break
from forkpoint.auditing.sizes import Deadline, between, first_change, thresholds
from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.runs.returned import results_of
from forkpoint.scene.replaying.profiling import kernels
from forkpoint.support.equality import same_bits

Outputs: TypeAlias = tuple[Tensor, ...]
"""What one call returned, as far as it follows the rows: copies, since a function may return the same memory each time."""

_SHIFT = 5
"""By how many rows a call begins later."""


class CuttableFunction:
    """A function, and arguments of which some can be cut to fewer rows or tokens.

    Args:
        call: the function.
        arguments: its positional arguments, tensors or not.
        cut: by the place of an argument, the dimension that is cut.
        out: the dimension of the results that follows.
    """

    def __init__(
        self, call: Callable[..., Any], arguments: Sequence[Any], cut: Mapping[int, int], out: int
    ) -> None:
        self.call, self.arguments, self.cut, self.out = call, list(arguments), dict(cut), out
        sizes = {self._size_of(place, dim) for place, dim in self.cut.items()}
        if len(sizes) != 1 or min(sizes) < 2:
            raise InputError(f"arguments of {sorted(sizes)} rows", "one number of rows, 2 or more")
        self.longest = sizes.pop()
        self._following: tuple[str, ...] = ()
        self._overwrites = False

    def settled(self, fewer: int) -> Outputs:
        """The results for all rows; which results follow the rows, and whether a call changes its arguments, is known then.

        Args:
            fewer: another number of rows.

        Raises:
            InputError: no result has as many rows as the arguments.
        """
        copies = [one.clone() if isinstance(one, Tensor) else one for one in self.arguments]
        whole = self._called(copies)
        self._overwrites = any(
            isinstance(one, Tensor) and not same_bits(one, copy)
            for one, copy in zip(self.arguments, copies, strict=True)
        )
        part = self._called(self._cut(fewer, 0))
        self._following = tuple(
            name for name in whole if name in part and self._follows(whole[name], part[name], fewer)
        )
        if not self._following:
            raise InputError(
                f"results of which none has as many rows in dimension {self.out} as the arguments",
                "a result for each row",
                "out= says which dimension of the results follows",
            )
        return self._outputs(whole)

    def made(self, size: int, start: int = 0) -> Outputs:
        """The results for that many rows from `start` on."""
        return self._outputs(self._called(self._cut(size, start)))

    def same(self, one: int, other: int) -> bool:
        """Whether the rows that two calls share have the same bits."""
        shared = min(one, other)
        return equal(*(self.part(self.made(size), shared) for size in (one, other)))

    def part(self, outputs: Outputs, size: int, start: int = 0) -> Outputs:
        """That many rows from `start` on, of results that have as many."""
        return tuple(
            one.narrow(self.out, start, size) if self._size(one) >= start + size else one for one in outputs
        )

    def wide(self) -> Tensor:
        """The first result for all rows in float64."""
        given = [
            one.double() if isinstance(one, Tensor) and one.is_floating_point() else one
            for one in self.given()
        ]
        return self._called(given)[self._following[0]]

    def counterpart(self, result: Any, like: Tensor) -> Tensor:
        """The tensor in another function's result that stands for the first result: of its name, or else of its shape.

        Args:
            result: what the other function returned.
            like: the first result.

        Raises:
            InputError: none has its shape.
        """
        tensors = tensors_of(result)
        named = tensors.get(self._following[0], like.new_empty(0))
        for one in (named, *tensors.values()):
            if one.shape == like.shape:
                return one
        shape = tuple(like.shape)
        raise InputError(f"a reference without a result of shape {shape}", "one that computes the same")

    def given(self) -> list[Any]:
        """The arguments; copies, where a call changes them."""
        if not self._overwrites:
            return list(self.arguments)
        return [one.clone() if isinstance(one, Tensor) else one for one in self.arguments]

    def kernels(self, size: int) -> tuple[str, ...]:
        """The kernels that a call of that many rows runs."""
        first = next(one for one in self.arguments if isinstance(one, Tensor))
        return kernels(lambda: self.made(size), first.device).names

    def _size_of(self, place: int, dim: int) -> int:
        argument = self.arguments[place] if place < len(self.arguments) else None
        if not isinstance(argument, Tensor) or not -argument.dim() <= dim < argument.dim():
            raise InputError(f"argument {place}, of which dimension {dim} is cut", "a tensor that has it")
        return argument.shape[dim]

    def _called(self, given: Sequence[Any]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return tensors_of(self.call(*given))

    def _outputs(self, results: Mapping[str, Tensor]) -> Outputs:
        with torch.inference_mode():
            return tuple(
                results[name].clone() if name in results else torch.empty(0) for name in self._following
            )

    def _follows(self, whole: Tensor, part: Tensor, fewer: int) -> bool:
        """Whether a result has a row for each row, and is otherwise of one shape."""
        return (
            whole.dim() == part.dim()
            and self._size(whole) == self.longest
            and self._size(part) == fewer
            and whole.narrow(self.out, 0, 1).shape == part.narrow(self.out, 0, 1).shape
        )

    def _size(self, one: Tensor) -> int:
        return one.shape[self.out] if -one.dim() <= self.out < one.dim() else -1

    def _cut(self, size: int, start: int) -> list[Any]:
        given = self.given()
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
    longest = function.longest
    if sizes is None:
        usual = thresholds(longest)
        sizes = [*usual, *between(usual, longest)]
    tried = sorted({*(size for size in sizes if 1 <= size <= longest), longest})
    whole = function.settled(tried[-2] if len(tried) > 1 else longest)
    changing = _unrepeated(function, whole, longest)
    if changing is not None:
        return Audit(name, 1, (changing,), largest=longest)
    breaking: list[int] = []
    changed: tuple[int, int] | None = None
    breaks: list[Break] = []
    before: tuple[int, Outputs] | None = None
    count, unfinished = 0, ""
    for size in tried:
        if deadline.over:
            unfinished = f"sizes from {size} on, for want of time"
            break
        made = function.made(size)
        count += 1
        if not equal(made, function.part(whole, size)):
            breaking.append(size)
        if changed is None and before is not None and not equal(before[1], function.part(made, before[0])):
            changed = first_change(function.same, before[0], size)
        before = size, made
    if changed is None and breaking:
        changed = breaking[0], longest
    if changed is not None:
        breaks.append(_break(function, *changed))
    if len(function.cut) == 1 and not breaks and not deadline.over:
        breaks += _shifted(function, tried, whole)
    precision = _precision(function, whole[0], reference)
    largest = before[0] if before is not None else 0
    return Audit(name, count, tuple(breaks), tuple(breaking), precision, unfinished, largest)


def _unrepeated(function: CuttableFunction, made: Outputs, size: int) -> Break | None:
    """Where the same call gives other bits when it is made again: what its size does can't be told then."""
    again = function.made(size)
    if equal(made, again):
        return None
    words = f"a call of {size} rows has other bits when it is made again"
    return Break("again", size, size, words, *distances(made, again))


def _break(function: CuttableFunction, one: int, other: int) -> Break:
    small, large = function.made(one), function.made(other)
    changing = _unrepeated(function, small, one) or _unrepeated(function, large, other)
    if changing is not None:
        return changing
    words = f"the same rows have other bits in a call of {other} than of {one}"
    ran = function.kernels(other), function.kernels(one)
    return Break(
        "rows",
        other,
        one,
        words,
        *distances(small, function.part(large, one)),
        kernels=ran if any(ran) else None,
    )


def _shifted(function: CuttableFunction, tried: Sequence[int], whole: Outputs) -> list[Break]:
    """The same rows at another place of the call."""
    for size in tried:
        if size + _SHIFT > function.longest:
            break
        made, expected = function.made(size, _SHIFT), function.part(whole, size, _SHIFT)
        if not equal(made, expected):
            words = f"{size} rows have other bits at the beginning of a call than {_SHIFT} rows later"
            return [Break("order", size, size, words, *distances(made, expected))]
    return []


def _precision(
    function: CuttableFunction, whole: Tensor, reference: Callable[..., Any] | None
) -> Accuracy | None:
    if isinstance(function.call, torch.nn.Module) or not whole.is_floating_point():
        return None
    try:
        exact = function.wide()
        result = None if reference is None else reference(*function.given())
    except Exception as error:  # noqa: BLE001 - any function may refuse float64 in any way
        reraise_out_of_memory(error)
        return None
    if exact.dtype is not torch.float64 or exact.shape != whole.shape:
        return None
    other = None if reference is None else function.counterpart(result, whole)
    scale = float(exact.abs().mean()) or 1.0
    figures = [
        (float(gap.mean()) / scale, float(gap.max()) / scale)
        for gap in ((one.double() - exact).abs() for one in (whole, other) if one is not None)
    ]
    return Accuracy(*figures[0], *(figures[1] if len(figures) > 1 else ()))


def tensors_of(result: Any) -> dict[str, Tensor]:
    """A result, or all tensors in it, by name.

    Raises:
        InputError: there is none, so that nothing could be compared.
    """
    tensors = {"": result} if isinstance(result, Tensor) else results_of(result)
    if not tensors:
        raise InputError("a function that returns no tensor", "one that returns a tensor")
    return tensors


def first_tensor(result: Any) -> Tensor:
    """A result, or the first tensor in it."""
    return next(iter(tensors_of(result).values()))


def equal(some: Outputs, others: Outputs) -> bool:
    """Whether results have the same bits, each the same as its counterpart; NaN equals NaN."""
    return len(some) == len(others) and all(map(same_bits, some, others))


def distances(some: Outputs, others: Outputs) -> tuple[int, int, float]:
    """How far the first results that differ are apart; see `distance`."""
    if len(some) != len(others):
        return distance(torch.empty(0), torch.empty(1))
    pairs = zip(some, others, strict=True)
    return next((distance(one, other) for one, other in pairs if not same_bits(one, other)), (0, 0, 0.0))


def distance(one: Tensor, other: Tensor) -> tuple[int, int, float]:
    """How many values differ, of how many, and the largest distance: infinite where one is no number, or shapes differ."""
    if one.shape != other.shape:
        return max(one.numel(), other.numel()), max(one.numel(), other.numel()), float("inf")
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    one, other = one.to(wide), other.to(wide)
    differs = (one != other) & ~((one != one) & (other != other))
    gap = (one - other).abs()[differs].nan_to_num(nan=float("inf"), posinf=float("inf"))
    return int(differs.sum()), differs.numel(), float(gap.max()) if gap.numel() else 0.0
