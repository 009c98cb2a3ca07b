"""The two runs side by side, and the modules that are not what the source says."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from forkpoint.report.document import (
    NO_BREAK,
    Fact,
    Grid,
    Line,
    Paragraph,
    Section,
    Span,
    line,
    muted,
    strong,
)
from forkpoint.report.numbers import count, shape

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import ReplacedModule, Result, RunSummary

Shape = tuple[int, ...]

PLACES_SHOWN = 6
ENTRIES_SHOWN = 8


def summary(result: Result, words: Words) -> Section:
    """What went into each run; where the runs differ, the words stand out."""
    a, b = result.a, result.b
    names = list(dict.fromkeys(name for run in (a, b) for call in run.calls for name in call))
    pairs = [(name, _shapes(a, name), _shapes(b, name)) for name in names]
    facts = {
        "runs.calls": (count(len(a.calls)), count(len(b.calls))),
        "runs.rows": (count(a.samples), count(b.samples)),
        "runs.tokens": (count(a.tokens), count(b.tokens)),
        "runs.padding": (count(a.padding), count(b.padding)),
        "runs.dtype": (a.dtype, b.dtype),
        "runs.device": (a.device, b.device),
        "runs.attention": (a.attention or "–", b.attention or "–"),
        "runs.ops": (count(a.ops), count(b.ops)),
    }
    pairs += [(words(key), *texts) for key, texts in facts.items()]
    pairs += [
        (words("runs.configuration", name=item.name), item.value_a or "–", item.value_b or "–")
        for item in result.configuration[:ENTRIES_SHOWN]
    ]
    grid = Grid(
        tuple(_row(*pair) for pair in pairs), head=(line(), line(words("run.a")), line(words("run.b")))
    )
    remarks = tuple(
        Fact(words(f"run.{key}"), tuple(line(words.sentence(text)) for text in run.notes))
        for key, run in (("a", a), ("b", b))
        if run.notes
    )
    rest = len(result.configuration) - ENTRIES_SHOWN
    more = (Paragraph(line(muted(words.many("runs.configuration.more", rest)))),) if rest > 0 else ()
    return Section("runs", line(words("runs")), (grid, *more, *remarks))


def _row(label: str, a: str, b: str) -> tuple[Line, ...]:
    paint = muted if a == b else Span
    return line(muted(label)), line(paint(a)), line(paint(b))


def _shapes(run: RunSummary, name: str) -> str:
    """The shapes of one input over the calls, those that repeat or grow steadily taken together."""
    if not any(name in call for call in run.calls):
        return "–"
    return ", ".join(_span(shapes) for shapes in _series([call.get(name) for call in run.calls]))


def _series(shapes: list[Shape | None]) -> list[list[Shape | None]]:
    """Cut a list of shapes where a step is unlike the one before."""
    series: list[list[Shape | None]] = []
    for item in shapes:
        if series and _continues(series[-1], item):
            series[-1].append(item)
        else:
            series.append([item])
    return series


def _continues(series: list[Shape | None], item: Shape | None) -> bool:
    step = _step(series[-1], item)
    if len(series) > 1:
        return step == _step(series[-2], series[-1])
    return step is not None and sum(step) in (0, 1)


def _step(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None:
        return () if a is b else None
    return tuple(y - x for x, y in zip(a, b, strict=True)) if len(a) == len(b) else None


def _span(series: list[Shape | None]) -> str:
    """One text for the shapes of several calls.

    >>> _span([(1, 1), (1, 1)]).replace(NO_BREAK, " "), _span([(1, 9), (1, 10)]).replace(NO_BREAK, " ")
    ('[1, 1] × 2', '[1, 9…10] × 2')
    """
    head, last = series[0], series[-1]
    if head is None or last is None:
        text = "–"
    elif head == last:
        text = shape(head)
    else:
        sizes = (str(x) if x == y else f"{x}…{y}" for x, y in zip(head, last, strict=True))
        text = "[" + f",{NO_BREAK}".join(sizes) + "]"
    return text if len(series) == 1 else f"{text}{NO_BREAK}×{NO_BREAK}{len(series)}"


def replaced(result: Result, words: Words) -> Section | None:
    """Modules of another class than the source names, grouped by class and place."""
    modules = result.replaced_modules
    if not modules:
        return None
    classes = Counter((module.actual, module.expected) for module in modules)
    blocks: list[Fact | Paragraph] = []
    for (actual, expected), number in classes.most_common():
        text = words("replaced.for", actual=actual, expected=expected)
        blocks.append(Paragraph(line(strong(f"{count(number)} × "), text)))
        inside = [module for module in modules if (module.actual, module.expected) == (actual, expected)]
        places = _places(inside)
        blocks += [Paragraph(line(muted(place)), "  ") for place in places[:PLACES_SHOWN]]
        if len(places) > PLACES_SHOWN:
            rest = len(places) - PLACES_SHOWN
            blocks.append(Paragraph(line(muted(words.many("replaced.more", rest))), "  "))
    return Section("replaced", line(words("replaced")), tuple(blocks))


def _places(modules: list[ReplacedModule]) -> list[str]:
    """Paths with the numbers of layers and experts left out, siblings taken together.

    >>> from forkpoint.result import ReplacedModule
    >>> names = ["layers.0.attn.q", "layers.0.attn.k", "layers.1.attn.q", "layers.1.attn.k"]
    >>> _places([ReplacedModule(name, "nn.Linear", "Linear8bitLt") for name in names])
    ['4 × layers.*.attn.{q, k}']
    """
    numbers = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module.module) for module in modules)
    places: list[str] = []
    for parent, paths in groupby(numbers, key=lambda path: path.rpartition(".")[0]):
        group = list(paths)
        leaves = [path.rpartition(".")[2] for path in group]
        leaf = leaves[0] if len(leaves) == 1 else "{" + ", ".join(leaves) + "}"
        path = f"{parent}.{leaf}" if parent else leaf
        places.append(f"{count(sum(numbers[item] for item in group))} × {path}")
    return places
