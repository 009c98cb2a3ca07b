"""What the page's scripts draw: the map of layers and tokens, and the table of ops. Plain JSON types."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from forkpoint.printable import one_line, printable
from forkpoint.report.changes import counterpart
from forkpoint.report.numbers import either, shapes
from forkpoint.report.place import alone, where
from forkpoint.report.status import marked

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import LayerDrift, OpRow, Result

MAX_CELLS = 150_000
MAX_COLUMNS = 1_000
"""Cells and columns of the map, which has about as many pixels; where there are more tokens, neighbours share a column,
so that one of them is seen."""
MAX_OPS = 20_000
MAX_TEXT = 300
"""Characters of a line of source, or of a name."""

Coordinate = tuple[Hashable | None, int | None]

_WORDS = {
    "range": "page.range",
    "inside": "page.inside",
    "differing": "ops.differing",
    "root": "module.root",
    "tokens": "page.token",
    "relative": "page.relative",
    "equal": "page.equal",
    "within": "page.within",
    "gap": "page.gap",
    "relatively": "gap.relative",
    "first": "first",
}
_HEADS = ("function", "variable", "source", "shape", "dtype", "status")


def data(result: Result, words: Words) -> dict[str, Any]:
    """All that the scripts need."""
    texts = {name: words.find(key) for name, key in _WORDS.items()}
    heads = {key: words(f"ops.{key}") for key in _HEADS}
    heads |= {"order": words("page.order"), "module": words("page.module")}
    statuses = {row.status: words.name("status", row.status) for row in result.ops}
    return {
        "map": _map(result, words),
        "ops": _ops(result, words),
        "words": {**texts, "heads": heads, "statuses": statuses},
    }


# ---------------------------------------------------------------------- the map


def columns_together(result: Result) -> int:
    """How many neighbouring tokens share a column of the map."""
    tokens = len(_places(result))
    return max(1, math.ceil(tokens * len(result.drift) / MAX_CELLS), math.ceil(tokens / MAX_COLUMNS))


def map_height(result: Result) -> int:
    """Pixels: known before anything is drawn, so that what stands below stays where it is."""
    return min(760, max(200, 90 + 15 * len(result.drift)))


def mark(result: Result) -> tuple[int, Coordinate] | None:
    """Row of the map, and token, of the first divergence; None where it lies in no layer or in none of its tokens."""
    first = result.first
    if first is None:
        return None
    inside = [
        (len(layer.module), number)
        for number, layer in enumerate(result.drift)
        if layer.module and f"{first.module}.".startswith(f"{layer.module}.")
    ]
    place = (first.sample, first.position)
    return (max(inside)[1], place) if inside and place in _places(result) else None


def _map(result: Result, words: Words) -> dict[str, Any] | None:
    if not result.drift:
        return None
    places = list(_places(result))
    width = columns_together(result)
    groups = [places[start : start + width] for start in range(0, len(places), width)]
    column = {place: number for number, group in enumerate(groups) for place in group}
    marked_at, texts = mark(result), _texts(result)
    return {
        "rows": [_row(result, layer) for layer in result.drift],
        "columns": [_label(group, brief=alone(result)) for group in groups],
        "hover": [_named(group, texts, result, words) for group in groups],
        "cells": [_gaps(layer, column, len(groups)) for layer in result.drift],
        "height": map_height(result),
        "mark": None if marked_at is None else (marked_at[0], column[marked_at[1]]),
        "prefix": _prefix([layer.module for layer in result.drift]),
    }


def _places(result: Result) -> dict[Coordinate, None]:
    """The tokens of all layers: sample by sample, in order."""
    samples: dict[Hashable | None, set[int | None]] = {}
    for layer in result.drift:
        for sample, position, _ in layer.per_token:
            samples.setdefault(sample, set()).add(position)
    ordered = {
        sample: sorted(positions, key=lambda position: -1 if position is None else position)
        for sample, positions in samples.items()
    }
    return {(sample, position): None for sample, positions in ordered.items() for position in positions}


def _row(result: Result, layer: LayerDrift) -> dict[str, Any]:
    """A layer: its ops are those inside it; those of a result are all that run after the last layer."""
    modules = {row.module for row in result.ops}
    here = any(f"{module}.".startswith(f"{layer.module}.") for module in modules)
    layers = {item.module for item in result.drift}
    last = max((n for n, row in enumerate(result.ops) if _within(row.module, layers)), default=-1)
    graded = 0 < layer.max_abs < math.inf and 0 < layer.max_rel < math.inf
    return {
        "name": _text(layer.module),
        "module": layer.module if here else None,
        "after": last,
        "factor": layer.max_rel / layer.max_abs if graded else None,
        "relative": _number(layer.max_rel),
    }


def _within(module: str, layers: set[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:length]) in layers for length in range(1, len(parts) + 1))


def _gaps(layer: LayerDrift, column: dict[Coordinate, int], width: int) -> list[Any]:
    """The largest gap of each column; None where the layer has none of its tokens."""
    gaps: list[float | None] = [None] * width
    for sample, position, gap in layer.per_token:
        at = column[sample, position]
        held = gaps[at]
        gaps[at] = gap if held is None or not held >= gap else held  # NaN, once there, stays
        if held is not None and math.isnan(held):
            gaps[at] = held
    return [None if gap is None else _number(gap) for gap in gaps]


def _number(value: float) -> float | str:
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def _label(group: list[Coordinate], *, brief: bool) -> str:
    (sample, position), last = group[0], group[-1][1]
    text = "–" if position is None else str(position)
    if len(group) > 1 and last is not None and group[-1][0] == sample:
        text += f"–{last}"
    return text if brief or sample is None else _text(f"{sample}:{text}")


def _texts(result: Result) -> dict[Coordinate, str | None]:
    """What is known of the tokens' texts."""
    texts: dict[Coordinate, str | None] = {
        (sample, at): text for row in result.a.rows for sample, at, text in row.columns if at is not None
    }
    first = result.first
    return texts if first is None else {(first.sample, first.position): first.token, **texts}


def _named(group: list[Coordinate], texts: dict[Coordinate, str | None], result: Result, words: Words) -> str:
    ends = [group[0], group[-1]] if len(group) > 1 else group
    named = [where(*place, texts.get(place), words, brief=alone(result)) for place in ends]
    return printable(" … ".join(named))


def _prefix(names: list[str]) -> str:
    """What the names of the layers begin with, up to a dot; results, whose names have none, left out.

    >>> _prefix(["model.layers.0", "model.layers.1", "logits"]), _prefix(["0", "1"])
    ('model.layers.', '')
    """
    dotted = [name.split(".")[:-1] for name in names if "." in name]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*dotted, strict=False))]
    return "".join(f"{part}." for part in shared)


# ---------------------------------------------------------------------- the table


def _ops(result: Result, words: Words) -> dict[str, Any]:
    texts: dict[str, int] = {}
    chosen = chosen_ops(result)
    rows = [_op(number, result.ops[number], texts, words) for number in chosen]
    counts = Counter(result.ops[number].status for number in chosen)
    first = first_op(result)
    return {
        "rows": rows,
        "texts": list(texts),
        "first": None if first is None or first not in chosen else chosen.index(first),
        "counts": list(counts.items()),
        "roles": {status: marked(status, words).role.value for status in counts},
    }


def chosen_ops(result: Result) -> list[int]:
    """Which ops the table has: all, or of too many those that differ or have no partner before those that are equal."""
    if len(result.ops) <= MAX_OPS:
        return list(range(len(result.ops)))
    urgent = sorted(range(len(result.ops)), key=lambda number: result.ops[number].status in ("equal", "view"))
    return sorted(urgent[:MAX_OPS])


def first_op(result: Result) -> int | None:
    """Number of the op that is the first divergence."""
    first = result.first
    if first is None:
        return None
    alike = (n for n, row in enumerate(result.ops) if (row.op, row.source) == (first.op, first.source))
    return min(alike, key=lambda number: (result.ops[number].status != "differs", number), default=None)


def _op(number: int, row: OpRow, texts: dict[str, int], words: Words) -> tuple[int, ...]:
    def index(text: str) -> int:
        return texts.setdefault(_text(text), len(texts))

    function, variable = row.function + (f"[{row.output}]" if row.output else ""), row.variable or ""
    if not row.source:  # what goes into a module: `input:NAME`
        function, _, variable = function.partition(":")
    return (
        number,
        index(row.module),
        index(function),
        index(variable),
        index(row.source),
        index(row.code),
        index(shapes(row.shape_a, row.shape_b)),
        index(either(row.dtype_a, row.dtype_b)),
        index(row.status),
        row.compared,
        row.differing,
        index(words.phrase(row.reason) if row.reason else counterpart(row, words)),
        row.passes,
    )


def _text(text: str) -> str:
    return one_line(text, MAX_TEXT)
