"""Parameters that the other run has in other pieces, or transposed, told by the digests of their rows and columns.

Fused and split projections have the same rows; the matrices of `transformers`' `Conv1D` (GPT-2) have for columns what those
of `nn.Linear` have for rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.result import NameMatch
from forkpoint.traces.reading import TraceFolder, WeightDigests

SHOWN = 3
"""Parameters that a note names."""
PRODUCTS = frozenset(
    {"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "conv1d", "T", "t", "mT", "transpose", "permute"}
)  # fmt: skip
"""Functions whose choice says which way a matrix is multiplied by."""


@dataclass(frozen=True)
class Regrouped:
    """Parameters that both runs have, in other pieces or transposed.

    Attributes:
        names: of all that only one run has by that name.
        parts: by the name of one that is put together, what its rows are the rows of, in their order.
        transposed: names that both runs have, of matrices that the other has transposed and multiplies by otherwise.
    """

    names: frozenset[str]
    parts: Mapping[str, tuple[str, ...]]
    transposed: tuple[str, ...] = ()

    def note(self) -> list[str]:
        """The same as notes of a report; none where there are no such parameters."""
        notes: list[str] = []
        if self.parts:
            each = [f"{name} = {' + '.join(parts)}" for name, parts in self.parts.items()]
            notes.append(f"parameters matched by their rows: {_listed(each)}")
        if self.transposed:
            notes.append(f"parameters that the other run has transposed: {_listed(self.transposed)}")
        return notes

    def matches(self, one: TraceFolder, other: TraceFolder) -> tuple[NameMatch, ...]:
        """The same, all of them, as records of a result."""
        rows = (
            NameMatch("parameter", *(((name,), of) if name in one.weights else (of, (name,))), "rows")
            for name, of in self.parts.items()
        )
        turned = (
            NameMatch("parameter", (name,), (name,), "transposed")
            for name in self.transposed
            if name in other.weights
        )
        return (*rows, *turned)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … (+{len(names) - SHOWN})" if len(names) > SHOWN else "")


def regrouped(one: TraceFolder, other: TraceFolder) -> Regrouped:
    """Find the parameters of either run that are put together of rows of the other's, with the biases that go with them."""
    a, b = one.weights, other.weights
    only_a, only_b = ({n: w for n, w in mine.items() if n not in theirs} for mine, theirs in ((a, b), (b, a)))
    names: set[str] = set()
    parts: dict[str, tuple[str, ...]] = {}
    for whole, pieces in ((only_b, only_a), (only_a, only_b)):
        rows, columns = (_rows(pieces, turned=turned) for turned in (False, True))
        for name, weight in whole.items():
            ways = (
                (weight.digests, rows, 2), (weight.columns, columns, 2), (weight.columns, rows, 1), (weight.digests, columns, 1),
            )  # fmt: skip
            located = next(
                (f for some, there, least in ways if (f := _rows_elsewhere(weight, some, there, least))), None
            )
            if located is None or name in names:
                continue
            parts[name] = tuple(dict.fromkeys(of for of, _ in located))
            names |= {name, *parts[name]}
            bias, biases = _bias(name), [_bias(of) for of in parts[name]]
            if _is_bias(whole.get(bias), pieces, located):
                names |= {bias, *biases}
    return Regrouped(frozenset(names), parts, _transposed(one, other))


def _transposed(one: TraceFolder, other: TraceFolder) -> tuple[str, ...]:
    """Matrices that both runs have by one name, one of them transposed, unless both are multiplied by in the same way."""
    uses = [_products(recorded) for recorded in (one, other)]
    names: list[str] = []
    for name, weight in one.weights.items():
        there = other.weights.get(name)
        if there is None or weight.dtype != there.dtype or not is_transposed(weight, there):
            continue
        here, elsewhere = (use.get(name.rpartition(".")[0], frozenset[str]()) for use in uses)
        if not here or here != elsewhere:
            names.append(name)
    return tuple(names)


def is_transposed(one: WeightDigests, other: WeightDigests) -> bool:
    """Whether the rows of one are the columns of the other, and the other way round."""
    if one.digests is None or other.digests is None or one.columns is None or other.columns is None:
        return False
    return np.array_equal(one.digests, other.columns) and np.array_equal(one.columns, other.digests)


def _products(recorded: TraceFolder) -> dict[str, frozenset[str]]:
    """By module, which of `PRODUCTS` it calls."""
    by_module: dict[str, set[str]] = {}
    for op in recorded.trace.ops:
        if not op.is_boundary and op.function in PRODUCTS:
            by_module.setdefault(op.module, set()).add(op.function)
    return {module: frozenset(functions) for module, functions in by_module.items()}


Row = tuple[str, int]
"""The name of a parameter and the index of a row."""


def _rows(weights: Mapping[str, WeightDigests], *, turned: bool) -> dict[int, Row | None]:
    """By its digest, where a row of a matrix is, or a column; None for one that is in several places."""
    places: dict[int, Row | None] = {}
    for name, weight in weights.items():
        digests = weight.columns if turned else weight.digests
        if digests is not None and len(weight.shape) > 1:
            for row, digest in enumerate(digests.tolist()):
                places[digest] = None if digest in places else (name, row)
    return places


def _rows_elsewhere(
    weight: WeightDigests, digests: np.ndarray | None, rows: Mapping[int, Row | None], least: int
) -> list[Row] | None:
    """Where each row of a matrix is in the other run, if it is made of at least so many matrices, and of all of their rows."""
    if digests is None or len(weight.shape) < 2:
        return None
    located = [row for digest in digests.tolist() if (row := rows.get(digest)) is not None]
    whole = len(located) == len(digests) == len({*located})
    of = {name for name, _ in located}
    if (
        not whole
        or len(of) < least
        or sum(row is not None and row[0] in of for row in rows.values()) != len(located)
    ):
        return None
    return located


def _is_bias(bias: WeightDigests | None, pieces: Mapping[str, WeightDigests], rows: list[Row]) -> bool:
    """Whether a bias has the elements that go with the rows of its matrix."""
    if bias is None or bias.digests is None or len(bias.digests) != len(rows):
        return False
    for digest, (name, row) in zip(bias.digests.tolist(), rows, strict=True):
        piece = pieces.get(_bias(name))
        if (
            piece is None
            or piece.digests is None
            or row >= len(piece.digests)
            or piece.digests[row] != digest
        ):
            return False
    return True


def _bias(name: str) -> str:
    module, _, _ = name.rpartition(".")
    return f"{module}.bias" if module else "bias"
