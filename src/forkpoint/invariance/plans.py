"""How the rows of a matrix product are computed, so that a row has the same bits whatever rows stand beside it.

The bits of a row depend on the order in which its products are summed. Libraries choose that order by the number of
rows. For each size there is a *reference*, whose order is always the same: blocks of a fixed number of rows, or a kernel
of our own. What is faster is used wherever a trial shows that it sums in the reference's order: the product as a whole,
or padded to a few rows more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from forkpoint.errors import InvarianceError

Rows: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""`[rows, inner]`, a matrix of any form and a bias or None, giving `[rows, …]`."""

_BLOCK = {"cpu": 64}
_BLOCK_ELSEWHERE = 256
"""Rows of a block of the reference."""
_FEW = (4, 8, 16, 32, 64, 128)
"""Numbers of rows that few rows are padded to, smallest first."""
_FEW_FOR_REFERENCE = 64
"""Numbers of rows below which a reference of one kernel is cheaper than to pad."""
ALIGNMENT = 64
"""Bytes: some libraries choose the order by where the rows begin."""
_SHIFT = 3
"""By how many rows the trial's rows are moved: at another place, and beside others, they are the same rows."""
_VALUES = 4096
"""Values that a trial compares at least."""


@dataclass(frozen=True)
class Sums:
    """Something that sums over each row.

    Attributes:
        size: what the order may depend on besides the number of rows: shapes, dtype, device, threads.
        whole: as torch makes it.
        cancelling: makes rows, and a matrix like a given one, whose sums are zero but for rounding; see `cancelling`.
        reference: one whose order never depends on the number of rows; None for `whole` on blocks.
    """

    size: Hashable
    whole: Rows
    cancelling: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    reference: Rows | None = None

    def plan(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Rows:
        """How that many rows are computed so that each has the same bits as alone.

        Args:
            rows: `[rows, inner]`, aligned; of these, too, a trial is made.
            weight, bias: what they are multiplied with, and what is added.

        Raises:
            InvarianceError: the trial shows that the reference itself depends on where a row stands.
        """
        count = rows.shape[0]
        padded = _plans.get((self.size, count))
        if padded is None:
            if self.reference is not None and _met.setdefault((self.size, count), _calls[0]) == _calls[0]:
                return (
                    self._referred
                )  # a trial costs more than it gains for what comes in one call of a model alone
            padded = _plans[self.size, count] = self._tried(rows, weight, bias)
        return self._way(padded, count)

    def computed(self, count: int) -> int | None:
        """How many rows are computed for that many, as a trial found: `count`, more, or 0 for the reference; None before it."""
        return _plans.get((self.size, count))

    def _way(self, padded: int, count: int) -> Rows:
        if padded == count:
            return self.whole
        if padded == _REFERENCE:
            return self._referred
        whole = self.whole
        return lambda rows, weight, bias: whole(_padded(rows, padded), weight, bias)[:count]

    def _referred(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.reference is not None:
            return self.reference(rows, weight, bias)
        count, block = rows.shape[0], _BLOCK.get(rows.device.type, _BLOCK_ELSEWHERE)
        parts = [
            self.whole(_padded(rows[start : start + block], block), weight, bias)
            for start in range(0, count, block)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:count]

    @torch.no_grad()
    def _tried(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> int:
        """How many rows are computed for that many, as trials on data that shows the order, and on these rows, find it."""
        count = rows.shape[0]
        expected = self._referred(rows, weight, bias)
        nothing = None if bias is None else torch.zeros_like(bias)
        candidates = [count, *(few for few in _FEW if few > count)]
        if self.reference is not None and count < _FEW_FOR_REFERENCE:
            candidates = candidates[:1]
        for seed in range(max(1, min(16, _VALUES // expected.numel()))):
            given, matrix = self.cancelling(rows, weight, seed)
            rest = self._referred(given, matrix, nothing)
            moved = self._referred(given.roll(_SHIFT, 0), matrix, nothing).roll(-_SHIFT, 0)
            if not torch.equal(rest, moved):
                raise InvarianceError(
                    f"{self.size} has no layout-invariant form here: its bits depend on where a row stands"
                )
            candidates = [
                one for one in candidates if torch.equal(self._way(one, count)(given, matrix, nothing), rest)
            ]
        for one in candidates:
            if torch.equal(self._way(one, count)(rows, weight, bias), expected):
                return one
        return _REFERENCE


_REFERENCE = 0
"""Stands for the reference among numbers of rows."""

_calls = [0]
_met: dict[tuple[Hashable, int], int] = {}
"""For each size and number of rows for which a reference of one kernel did at first, the call of a model that it came in."""
_plans: dict[tuple[Hashable, int], int] = {}
"""For each size and number of rows, the number that is computed."""


def begin() -> None:
    """Another call of a model begins."""
    _calls[0] += 1


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous, from an address that no library treats in a way of its own."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def cancelling(
    inner: int, rows: torch.Tensor, weight: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and a matrix of the same form whose products cancel: what is left is rounding, and tells one order from another.

    Each product has its negative at another place, so that every sum is zero but for rounding. What is left of a sum in
    one order has little in common with what is left in another, in any dtype.

    Args:
        inner: the dimension of the matrix that is summed over.
        rows, weight: what they are to be like.
        seed: of the values.
    """
    size, device = rows.shape[1], rows.device
    generator = torch.Generator(device).manual_seed(seed)
    half = size // 2
    order = torch.randperm(size, generator=generator, device=device)
    first, second = order[:half], order[half : 2 * half]
    given = torch.randn(rows.shape, generator=generator, device=device, dtype=torch.float32)
    given *= torch.exp2(torch.randint(-8, 9, (size,), generator=generator, device=device).float())
    given[:, second] = given[:, first]
    matrix = torch.randn(weight.shape, generator=generator, device=device, dtype=torch.float32)
    matrix.index_copy_(inner, second, -matrix.index_select(inner, first))
    if size % 2:
        given[:, order[-1]] = 0
    made = _like(weight)
    made.copy_(matrix)
    return aligned(given.to(rows.dtype)), made


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same strides, at an address of the same remainder."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    offset = tensor.data_ptr() % ALIGNMENT // tensor.element_size()
    room = torch.empty(extent + offset, dtype=tensor.dtype, device=tensor.device)
    return room.as_strided(tensor.shape, tensor.stride(), offset)


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - rows.shape[0])) if rows.shape[0] < count else rows
