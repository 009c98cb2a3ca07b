"""Parameters whose rows the other run has in other parameters: fused or split projections, told by the digests of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forkpoint.traces.reading import Weight

SHOWN = 3
"""Parameters that a note names."""


@dataclass(frozen=True)
class Regrouped:
    """Parameters that both runs have, in other pieces.

    Attributes:
        names: of all of them, in either run.
        parts: by the name of one that is put together, what its rows are the rows of, in their order.
    """

    names: frozenset[str]
    parts: Mapping[str, tuple[str, ...]]

    def note(self) -> list[str]:
        """The same as a note of a report; none where there are no such parameters."""
        if not self.parts:
            return []
        listed = ", ".join(
            f"{name} = {' + '.join(parts)}" for name, parts in list(self.parts.items())[:SHOWN]
        )
        more = f", … (+{len(self.parts) - SHOWN})" if len(self.parts) > SHOWN else ""
        return [f"parameters matched by their rows: {listed}{more}"]


def regrouped(a: Mapping[str, Weight], b: Mapping[str, Weight]) -> Regrouped:
    """Find the parameters of either run that are put together of rows of the other's, with the biases that go with them."""
    only_a, only_b = ({n: w for n, w in mine.items() if n not in theirs} for mine, theirs in ((a, b), (b, a)))
    names: set[str] = set()
    parts: dict[str, tuple[str, ...]] = {}
    for whole, pieces in ((only_b, only_a), (only_a, only_b)):
        rows = _rows(pieces)
        for name, weight in whole.items():
            found = _found(weight, rows)
            if found is None:
                continue
            parts[name] = tuple(dict.fromkeys(of for of, _ in found))
            names |= {name, *parts[name]}
            bias, biases = _bias(name), [_bias(of) for of in parts[name]]
            if _is_bias(whole.get(bias), pieces, found):
                names |= {bias, *biases}
    return Regrouped(frozenset(names), parts)


Row = tuple[str, int]
"""The name of a parameter and the index of a row."""


def _rows(weights: Mapping[str, Weight]) -> dict[int, Row | None]:
    """By its digest, where a row of a matrix is; None for one that is in several places."""
    found: dict[int, Row | None] = {}
    for name, weight in weights.items():
        if weight.digests is not None and len(weight.shape) > 1:
            for row, digest in enumerate(weight.digests.tolist()):
                found[digest] = None if digest in found else (name, row)
    return found


def _found(weight: Weight, rows: Mapping[int, Row | None]) -> list[Row] | None:
    """Where each row of a matrix is in the other run, if it is made of several matrices, and of all of their rows."""
    if weight.digests is None or len(weight.shape) < 2:
        return None
    found = [row for digest in weight.digests.tolist() if (row := rows.get(digest)) is not None]
    whole = len(found) == len(weight.digests) == len({*found})
    of = {name for name, _ in found}
    if (
        not whole
        or len(of) < 2
        or sum(row is not None and row[0] in of for row in rows.values()) != len(found)
    ):
        return None
    return found


def _is_bias(bias: Weight | None, pieces: Mapping[str, Weight], rows: list[Row]) -> bool:
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
