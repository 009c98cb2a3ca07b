"""How the operators of libraries move tokens: declared where they are known, found by trial where not.

A registered operator (`torch.library`) has a name and a schema, but nothing says which dimension of its output follows
which of its inputs. Those of bitsandbytes are declared here. Any other that neither keeps the shape of its inputs nor
answers for other sizes (`defaults`) is tried: one row of an input is changed, and the rows of the output that change
with it are that row's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.rules.call import Call, UnknownMovementError
from forkpoint.capture.rules.defaults import by_shape
from forkpoint.capture.rules.registry import LIBRARY, rule
from forkpoint.runs.randomness import RandomState

_FARTHEST = 1 << 24
"""Most elements of an input that is changed to see what becomes of it."""
_EXCHANGED = -1
"""In place of the index of a row: exchange the first row and the last, instead of changing one."""


# ---------------------------------------------------------------------- bitsandbytes


@rule("bitsandbytes.int8_vectorwise_quant")
def _quantised_by_row(call: Call) -> list[Label | None]:
    """[rows, columns] to int8 of the same shape, [rows] scales, and the columns with outliers, made of all rows."""
    label, columns = call.label(call.arg(0, "A")), call.arg(0, "A").dim()
    rows = call.labels.reduce(label, [columns - 1], keepdim=False)
    return [label, rows, *[_of_all(call, label, output.dim()) for output in call.outputs[2:]]]


@rule("bitsandbytes.int8_double_quant")
def _quantised_both_ways(call: Call) -> list[Label | None]:
    """The same by rows and by columns: int8 twice, scales of the rows, scales of the columns, and the outliers."""
    label, columns = call.label(call.arg(0, "A")), call.arg(0, "A").dim()
    rows = call.labels.reduce(label, [columns - 1], keepdim=False)
    return [label, label, rows, *[_of_all(call, label, output.dim()) for output in call.outputs[3:]]]


@rule("bitsandbytes.int8_scaled_mm", "bitsandbytes.int8_linear_matmul", "bitsandbytes.gemm_4bit",
      "bitsandbytes.gemv_4bit")  # fmt: skip
def _times_weight(call: Call) -> list[Label | None]:
    return _rows_of(call, call.arg(0, "A"))


@rule("bitsandbytes.int8_mixed_scaled_mm")
def _times_mixed_weight(call: Call) -> list[Label | None]:
    """The product, and the columns of A that were multiplied as they are."""
    return _rows_of(call, call.arg(0, "A"))


def _rows_of(call: Call, source: Tensor) -> list[Label | None]:
    """For outputs that have a row for each of an input's; none for one without elements."""
    label = call.labels.reduce(call.label(source), [source.dim() - 1], keepdim=True)
    return [label if output.dim() == source.dim() else None for output in call.outputs]


def _of_all(call: Call, label: Label | None, dims: int) -> Label | None:
    """The label of a value made of all tokens at once."""
    if label is None:
        return None
    union = call.labels.table.union(label.q.reshape(-1))
    return call.labels.make(np.full((1,) * dims, union, dtype=np.int32))


# ---------------------------------------------------------------------- any other


@rule(LIBRARY)
def by_trial(call: Call) -> list[Label | None]:
    """Rule of every operator of a library for which there is no other."""
    labels: list[Label | None] = []
    for index, output in enumerate(call.outputs):
        try:
            labels.append(by_shape(call, output))
        except UnknownMovementError:
            labels.append(_OperatorTrial(call).label_of(index))
    return labels


class _OperatorTrial:
    """An operator called again with one row of an input changed."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.unknown = UnknownMovementError(f"no rule says how {call.name} moves tokens")
        self.written = _written(call.func)

    def label_of(self, index: int) -> Label | None:
        """The label of an output, from what changes in it.

        Raises:
            UnknownMovementError: nothing changes, the operator refuses, or what changes fits no dimension.
        """
        before = self._outputs(None, None, 0)[index]
        for source in self.call.tensors():
            label = self.call.label(source)
            if label is None or label.k is not None or not 0 < source.numel() <= _FARTHEST:
                continue
            varying = [d for d, size in enumerate(label.q.shape) if size > 1]
            places = [self._place(index, before, source, d) for d in varying]
            if None in places:
                continue
            if -1 in places or len(set(places)) < len(places):
                return _of_all(self.call, label, before.dim())
            shape = [1] * before.dim()
            dims = [place for place in places if place is not None]
            for d, place in zip(varying, dims, strict=True):
                shape[place] = label.q.shape[d]
            squeezed = label.q.reshape([label.q.shape[d] for d in varying])
            return self.call.labels.make(np.transpose(squeezed, np.argsort(dims)).reshape(shape))
        raise self.unknown

    def _place(self, index: int, before: Tensor, source: Tensor, d: int) -> int | None:
        """The dimension of the output that follows a dimension of an input; -1 if all do, None if nothing changes."""
        size = int(source.shape[d])
        fitting = {place for place in range(before.dim()) if before.shape[place] == size}
        changes = False
        for row in (0, size - 1):
            after = self._outputs(source, d, row)[index]
            if after.shape != before.shape:
                return -1
            changed = (after != before) & ~((after != after) & (before != before))
            if not changed.any():
                continue
            changes = True
            fitting = {place for place in fitting if _only(changed, place, row)}
        if not changes:
            return None
        return min(fitting) if fitting else self._exchanged(index, before, source, d)

    def _exchanged(self, index: int, before: Tensor, source: Tensor, d: int) -> int:
        """The dimension of the output whose first and last rows are exchanged when those of an input are; -1 if none is.

        It tells where a changed row changes all rows, as where they share a scale.
        """
        last = int(source.shape[d]) - 1
        if not last:
            return -1
        after = self._outputs(source, d, _EXCHANGED)[index]
        fitting = [place for place in range(before.dim()) if before.shape[place] == last + 1]
        moved = [p for p in fitting if not torch.equal(before.select(p, 0), before.select(p, last))]
        return next((p for p in moved if torch.equal(after, _with_exchanged_rows(before, p))), -1)

    def _outputs(self, changed: Tensor | None, d: int | None, row: int) -> list[Tensor]:
        """What the operator gives, with one row of one of its inputs changed, or its first and last exchanged."""
        call, random = self.call, RandomState.take()
        try:
            args, kwargs = self._arguments((call.args, call.kwargs), changed, d, row)
            with torch.no_grad():
                result = call.func(*args, **kwargs)
        except Exception:  # noqa: BLE001 - an operator may refuse in any way
            raise self.unknown from None
        finally:
            random.restore()
        outputs = [result] if isinstance(result, Tensor) else [t for t in result if isinstance(t, Tensor)]
        if len(outputs) != len(call.outputs):
            raise self.unknown
        return outputs

    def _arguments(self, value: Any, changed: Tensor | None, d: int | None, row: int) -> Any:
        if isinstance(value, Tensor):
            if value is changed and d is not None:
                return _with_exchanged_rows(value, d) if row == _EXCHANGED else _with_other_row(value, d, row)
            return value.clone() if self.written or self.call.label(value) is not None else value
        if isinstance(value, (tuple, list)):
            return type(value)(self._arguments(item, changed, d, row) for item in value)
        if isinstance(value, dict):
            return {key: self._arguments(item, changed, d, row) for key, item in value.items()}
        return value


def _with_exchanged_rows(value: Tensor, d: int) -> Tensor:
    order = [value.shape[d] - 1, *range(1, value.shape[d] - 1), 0]
    return value.index_select(d, torch.tensor(order, device=value.device))


def _with_other_row(value: Tensor, d: int, row: int) -> Tensor:
    value = value.clone()
    part = value.select(d, row)
    if value.dtype == torch.bool:
        part.logical_not_()
    elif value.dtype.is_floating_point or value.dtype.is_complex:
        part.copy_(part.float().mul(-1.5).add_(0.25) if not value.dtype.is_complex else part * -1.5 + 0.25)
    else:
        part.copy_(torch.where(part > 0, part - 1, part + 1))
    return value


def _only(changed: Tensor, place: int, row: int) -> bool:
    """Whether nothing changed but in one row along a dimension."""
    rows = changed.movedim(place, 0).reshape(changed.shape[place], -1).any(1)
    return bool(rows[row]) and int(rows.sum()) == 1


def _written(function: Any) -> bool:
    """Whether an operator writes to an argument, as far as its schema says."""
    schema = getattr(function, "_schema", None)
    return schema is None or any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
