"""Which implementation serves a device: numba the CPU, Triton a CUDA GPU, plain torch all the others.

What can't be imported here or fails its first digest is replaced by plain torch, with one warning: a trace
then takes longer and says the same.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import definition, torch_impl
from forkpoint.support.background import at_work

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class TablePlan:
    """How the tensors of a table are digested, whatever their addresses: layers that are alike share one.

    Attributes:
        fields: of each tensor's plan, `RowPlan.fields`: [tensors, fields].
        targets: where each tensor's digests begin in the result.
        rows: how many digests there are.
        cache: what an implementation works out from the fields, for the next table with this plan.
    """

    fields: Ints
    targets: Ints
    rows: int
    cache: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @classmethod
    def of(cls, fields: Ints) -> TablePlan:
        ends = np.cumsum(fields[:, 0])
        return cls(fields, ends - fields[:, 0], int(ends[-1]))


class TensorTable(NamedTuple):
    """Tensors that are digested at once, where they lie: at least one.

    Attributes:
        addresses: of their first elements.
        starts: the addresses of their rows' first words, 0 where they all begin at 0; None if they all do.
        table_plan: all the rest.
    """

    addresses: Ints
    starts: Ints | None
    table_plan: TablePlan

    @classmethod
    def of_one(cls, x: Tensor, fields: Sequence[int], first_word: Tensor | None) -> TensorTable:
        """One tensor; int32[rows] says which word of its row each of its rows begins with."""
        starts = None if first_word is None else np.array([first_word.data_ptr()], dtype=np.int64)
        table_plan = TablePlan.of(np.array([fields], dtype=np.int64))
        return cls(np.array([x.data_ptr()], dtype=np.int64), starts, table_plan)


class Implementation(Protocol):
    """What each implementation offers; the functions of `forkpoint.capture.digest` say what they do."""

    def rows(self, x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None, /) -> Tensor: ...
    def grid(self, x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None, /) -> Tensor: ...
    def accumulate(self, digests: Tensor, index: Tensor, size: int, /) -> Tensor: ...


class TableImplementation(Implementation, Protocol):
    """An implementation that digests many tensors at once, where they lie."""

    def digest_table(self, table: TensorTable, device: torch.device, /) -> Tensor: ...


PLAIN = cast("Implementation", torch_impl)


@functools.cache
def table_implementation(device: torch.device) -> TableImplementation | None:
    """The implementation for a device that digests many tensors at once, if there is one that works."""
    ahead = _ahead.get(device)
    backend, failure = _look_for(device) if ahead is None else ahead.result()
    if failure:
        warnings.warn(
            f"digests on {device} are computed by plain torch, which is slower, since {failure}",
            RuntimeWarning,
            stacklevel=2,
        )
    return backend


_ahead: dict[torch.device, Future[tuple[TableImplementation | None, str]]] = {}
"""By device, a search for its implementation that `prepare` began."""


def prepare(device: torch.device) -> None:
    """Begin to look for a device's implementation in another thread, if that takes long.

    Triton reads all its own files and may start a compiler; meanwhile the model makes its first forward pass.
    """
    if device.type == "cuda" and device not in _ahead:
        executor = ThreadPoolExecutor(1, "forkpoint-prepare")
        _ahead[device] = executor.submit(_look_ahead, device)
        executor.shutdown(wait=False)


def _look_ahead(device: torch.device) -> tuple[TableImplementation | None, str]:
    with at_work():
        return _look_for(device)


def _look_for(device: torch.device) -> tuple[TableImplementation | None, str]:
    """The implementation for a device that digests many tensors at once, and why it failed, if it did."""
    if device.type == "cpu":
        name, needs = "numba_impl", "numba"
    elif device.type == "cuda":
        name, needs = "triton_impl", "triton"
    else:
        return None, ""
    if importlib.util.find_spec(needs) is None:
        return None, ""
    try:
        backend = cast("TableImplementation", importlib.import_module(f"{__package__}.{name}"))
        _try_out(backend, device)
    except Exception as error:  # noqa: BLE001  a compiler may fail in any way; the fallback needs none
        return None, f"{needs} failed: {type(error).__name__}: {error}"
    return backend, ""


def implementation(device: torch.device) -> Implementation:
    """The fastest implementation for a device that this machine has."""
    return table_implementation(device) or PLAIN


def _try_out(backend: Implementation, device: torch.device) -> None:
    """Raises if an implementation doesn't give the digests of the definition."""
    x = torch.arange(-1000.0, 1048.0).reshape(2, 1024)  # as wide as most: Triton compiles nothing in vain
    x[0, :4] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.nan])
    for y in (x, x.repeat(1, 2).to(torch.bfloat16)):
        if backend.rows(y.to(device), (0,)).tolist() != definition.rows(y, (0,)):
            raise RuntimeError(
                "its digests are wrong (is a compiler's cache stale? numba's is in __pycache__)"
            )
