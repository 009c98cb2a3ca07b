"""How the gap grows, layer by layer, to the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from forkpoint.report.document import Cell, Grid, Meter, Paragraph, Role, Section, Span, line, muted
from forkpoint.report.numbers import count, short, size
from forkpoint.report.place import alone, module_name, where

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import LayerDrift, Result

LAYERS_SHOWN = 12


def section(result: Result, words: Words, most: int = LAYERS_SHOWN) -> Section | None:
    """The largest gap of each layer's output, on a logarithmic scale; of `most` layers at most."""
    layers = result.drift
    if not layers:
        return None
    title = line(words("drift"))
    if all(layer.max_abs == 0 for layer in layers):
        return Section("drift", title, (Paragraph(line(words.many("drift.all_equal", len(layers)))),))
    chosen = choose([layer.max_abs for layer in layers], most)
    brief = alone(result)
    scale = _scale([layer.max_abs for layer in layers])
    rows = tuple(_row(layers[index], scale, words, brief=brief) for index in chosen)
    heads = ("drift.module", None, "drift.max_abs", "drift.max_rel", "drift.token")
    grid = Grid(rows, tuple(line(words(key) if key else "") for key in heads), right=frozenset({2, 3}))
    shown = len(chosen) < len(layers)
    key = "drift.shown" if shown else "drift.scale"
    legend = words(key, shown=len(chosen), n=count(len(layers)))
    return Section("drift", title, (grid, Paragraph(line(muted(legend)))))


def choose(gaps: Sequence[float], most: int) -> list[int]:
    """Which layers to show: the last equal one, the first that differs, the largest, the last, others evenly.

    >>> choose([0.0, 1.0, 2.0], 12)
    [0, 1, 2]
    >>> choose([0.0] * 20 + [1.0, 3.0, 2.0] + [1.0] * 20, 6)
    [0, 19, 20, 21, 31, 42]
    """
    if len(gaps) <= most:
        return list(range(len(gaps)))
    first = next((index for index, gap in enumerate(gaps) if gap != 0), len(gaps) - 1)
    largest = max(range(len(gaps)), key=lambda index: math.inf if math.isnan(gaps[index]) else gaps[index])
    chosen = {0, max(first - 1, 0), first, largest, len(gaps) - 1}
    for step in range(1, len(gaps)):
        if len(chosen) >= most:
            break
        # halve the widest hole, so that the others lie evenly
        ordered = sorted(chosen)
        left, right = max(pairwise(ordered), key=lambda hole: (hole[1] - hole[0], -step))
        chosen.add((left + right) // 2)
    return sorted(chosen)


def _scale(gaps: list[float]) -> tuple[float, float]:
    sizes = [math.log(gap) for gap in gaps if 0 < gap < math.inf]
    return (min(sizes), max(sizes)) if sizes else (0.0, 0.0)


def _fraction(gap: float, scale: tuple[float, float]) -> float:
    low, high = scale
    if not gap < math.inf or low == high:
        return 1.0
    return (math.log(gap) - low) / (high - low)


def _row(layer: LayerDrift, scale: tuple[float, float], words: Words, *, brief: bool) -> tuple[Cell, ...]:
    name = line(module_name(layer.module, words))
    if layer.max_abs == 0:
        return name, Meter(None), line(Span(words("drift.equal"), Role.GOOD)), line(), line()
    worst = max(layer.per_token, key=lambda item: math.inf if math.isnan(item[2]) else item[2], default=None)
    place = where(worst[0], worst[1], None, words, brief=brief) if worst else ""
    meter = Meter(_fraction(layer.max_abs, scale))
    return name, meter, line(size(layer.max_abs)), line(short(layer.max_rel)), line(muted(place))
