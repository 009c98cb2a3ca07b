"""Which parameter of a port is which of its reference, by what is in them: whole, or row by row.

A fused projection holds the rows of several others, one after the other or in any order; a transposed one has for columns
what the other has for rows. So digests are taken of each row and of each column; where heads have a dimension of their own,
of both together, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.support.readable import why_unreadable

Ints = NDArray[np.int64]

ROWS, COLUMNS = 0, 1
MOST_OF_THEM = 0.9
"""The share of the smaller parameter's rows that has to be found in the other one. Some may be there more than once."""


@dataclass(frozen=True)
class Slices:
    """The digests of one parameter.

    Attributes:
        name: of the parameter.
        shape: of its value.
        whole: of all of it.
        rows: one for each index of all dimensions but the last; of a vector, one for each element.
        columns: one for each index of all dimensions but the one before the last; of a vector none.
        blocks: of more than two dimensions, one for each index of all but the last two: heads and their elements in one.
        plain: those of rows whose elements are all the same, as a norm's of ones: they tell nothing.
        tensor: the same number for two names of one tensor.
        looked_up: whether it is a table that rows are looked up in, not a matrix that is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    whole: int
    rows: Ints
    columns: Ints
    blocks: Ints
    plain: frozenset[int]
    tensor: int
    looked_up: bool

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def own_name(self) -> str:
        """Its name in its module."""
        return self.name.rpartition(".")[2]

    @property
    def is_vector(self) -> bool:
        return len(self.shape) < 2


@dataclass(frozen=True)
class SharedRows:
    """Rows of a parameter that are those of another one.

    Attributes:
        mine, reference: names of the parameters.
        rows_mine, rows_reference: which rows, in pairs; None where all are, one for one.
        transposed: whether one of them has them as columns.
    """

    mine: str
    reference: str
    rows_mine: Ints | None = None
    rows_reference: Ints | None = None
    transposed: bool = False


def slices_of(model: nn.Module) -> list[Slices]:
    """The digests of a model's parameters, of those that can be read; one that two modules share is there twice."""
    looked_up = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)
    }
    return [
        _slices(name, value.detach(), name in looked_up)
        for name, value in model.named_parameters(remove_duplicate=False)
        if value.numel()
        and not (why_unreadable(value) or value.is_quantized or value.layout != torch.strided)
    ]


def _slices(name: str, value: Tensor, looked_up: bool) -> Slices:
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()  # holds them exactly, so that a port in another dtype meets its reference
    dims = tuple(range(value.dim()))
    one = value.reshape(1, -1)
    rows = digest.rows(value if value.dim() > 1 else value.reshape(-1, 1), dims[:-1] or (0,))
    columns = digest.rows(value, (*dims[:-2], dims[-1])) if value.dim() > 1 else rows[:0]
    blocks = digest.rows(value, dims[:-2]) if value.dim() > 2 else rows[:0]
    whole = int(digest.rows(one, (0,))[0])
    rows, columns, blocks = (some.cpu().numpy() for some in (rows, columns, blocks))
    flat = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else one
    alike = (flat == flat[:, :1]).all(-1).cpu().numpy()
    plain = frozenset((rows[alike] if value.dim() > 1 else np.array([whole])[alike]).tolist())
    return Slices(name, tuple(value.shape), whole, rows, columns, blocks, plain, value.data_ptr(), looked_up)


def meet(mine: list[Slices], reference: list[Slices]) -> list[SharedRows]:
    """Parameters that are the same, and rows of one that are rows or columns of another."""
    shared = _whole(mine, reference)
    done_a, done_b = {f.mine for f in shared}, {f.reference for f in shared}
    rest_a = [s for s in mine if s.name not in done_a]
    rest_b = [s for s in reference if s.name not in done_b]
    for vectors in (False, True):
        some_a = [s for s in rest_a if s.is_vector is vectors]
        some_b = [s for s in rest_b if s.is_vector is vectors]
        shared += _by_rows(some_a, some_b, "rows", "rows")
        if not vectors:
            shared += _otherwise_laid(some_a, some_b, shared)
    return shared + _in_stacks(rest_a, rest_b, shared)


def _otherwise_laid(
    mine: list[Slices], reference: list[Slices], earlier: list[SharedRows]
) -> list[SharedRows]:
    """Matrices of which one has rows where the other has columns, or heads and their elements in two dimensions."""
    new: list[SharedRows] = []
    for of_mine, of_theirs in (
        ("columns", "rows"), ("rows", "columns"), ("blocks", "rows"), ("rows", "blocks"), ("blocks", "columns"),
        ("columns", "blocks"),
    ):  # fmt: skip
        done = {(f.mine, f.reference) for f in (*earlier, *new)}
        pairs = _by_rows(mine, reference, of_mine, of_theirs)
        new += [f for f in pairs if (f.mine, f.reference) not in done]
    return new


def _in_stacks(mine: list[Slices], reference: list[Slices], earlier: list[SharedRows]) -> list[SharedRows]:
    """Vectors of one model that are rows of a matrix of the other: the norms of all layers in one."""
    done = {f.mine for f in earlier}, {f.reference for f in earlier}
    shared: list[SharedRows] = []
    for turned in (False, True):
        stacks, vectors = (reference, mine) if turned else (mine, reference)
        stacks = [s for s in stacks if not s.is_vector and s.name not in done[turned]]
        lone = _unique(
            ((s.shape[0], s.whole), s) for s in vectors if s.is_vector and s.name not in done[not turned]
        )
        for s in stacks:
            for row, code in enumerate(s.rows.tolist()):
                one = lone.get((s.shape[-1], code))
                if one is None or code in s.plain or (s.rows == code).sum() > 1:
                    continue
                rows = np.array([row]), np.zeros(1, dtype=np.int64)
                here, there = (rows[1], rows[0]) if turned else rows
                names = (one.name, s.name) if turned else (s.name, one.name)
                shared.append(SharedRows(*names, here, there))
    return shared


def _whole(mine: list[Slices], reference: list[Slices]) -> list[SharedRows]:
    """Those that are the same in shape and content as one of the other model alone.

    Of an embedding and a head with the same values each meets its like.
    """
    shared: list[SharedRows] = []
    for key in (lambda s: (s.shape, s.whole, s.looked_up), lambda s: (s.shape, s.whole)):
        done_a, done_b = {f.mine for f in shared}, {f.reference for f in shared}
        here = _unique((key(s), s) for s in mine if s.name not in done_a)
        there = _unique((key(s), s) for s in reference if s.name not in done_b)
        shared += [SharedRows(s.name, there[k].name) for k, s in here.items() if k in there]
    return shared


def _unique(items: Iterable[tuple[object, Slices]]) -> dict[object, Slices]:
    """Those with a key of their own; of two names of one tensor the first."""
    by_key: dict[object, Slices] = {}
    often: set[object] = set()
    for key, one in items:
        if key in by_key and by_key[key].tensor != one.tensor:
            often.add(key)
        by_key.setdefault(key, one)
    return {key: one for key, one in by_key.items() if key not in often}


def _by_rows(mine: list[Slices], reference: list[Slices], of_mine: str, of_theirs: str) -> list[SharedRows]:
    """Pairs of parameters of which one has nearly all its slices in the other.

    Args:
        of_mine, of_theirs: which slices: `rows`, `columns` or `blocks`.
    """
    a: list[Ints] = [getattr(s, of_mine) for s in mine]
    b: list[Ints] = [getattr(s, of_theirs) for s in reference]
    if not sum(map(len, a)) or not sum(map(len, b)):
        return []
    digests_a, digests_b = np.concatenate(a), np.concatenate(b)
    common, at_a, at_b = np.intersect1d(_once(digests_a), _once(digests_b), return_indices=True)
    del common
    at_a, at_b = _places(digests_a)[at_a], _places(digests_b)[at_b]
    owner_a, row_a = _owners(a)
    owner_b, row_b = _owners(b)
    pair = owner_a[at_a] * len(b) + owner_b[at_b]
    shared: list[SharedRows] = []
    for number in np.unique(pair).tolist():
        here = np.flatnonzero(pair == number)
        one, other = divmod(number, len(b))
        if len(here) >= max(1, MOST_OF_THEM * min(len(a[one]), len(b[other]))):
            order = here[np.argsort(row_b[at_b[here]])]
            shared.append(
                SharedRows(
                    mine[one].name,
                    reference[other].name,
                    row_a[at_a[order]],
                    row_b[at_b[order]],
                    transposed="columns" in (of_mine, of_theirs),
                )
            )
    return shared


def _once(digests: Ints) -> Ints:
    """Those that are there once, in their order."""
    return digests[_places(digests)]


def _places(digests: Ints) -> Ints:
    """Where those are that are there once."""
    _, first, counts = np.unique(digests, return_index=True, return_counts=True)
    return np.sort(first[counts == 1])


def _owners(parts: list[Ints]) -> tuple[Ints, Ints]:
    """For each row of several parameters, which of them it is of, and which row there."""
    lengths = [len(part) for part in parts]
    return np.repeat(np.arange(len(parts)), lengths), np.concatenate([np.arange(n) for n in lengths])
