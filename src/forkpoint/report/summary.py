"""Several prompts: a line for each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from forkpoint.printable import printable
from forkpoint.report.document import Cell, Grid, Section, Span, line, muted, strong
from forkpoint.report.numbers import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.report.words import Words
    from forkpoint.result import Result

SHOWN = 32
"""Characters of a prompt that are shown."""


def summary(answers: Sequence[tuple[str, Result]], worst: int, words: Words) -> Section:
    """What came out for each prompt, the worst marked.

    Args:
        answers: each prompt and its result.
        worst: index of the one that is shown in full.
        words: the language.
    """
    kinds = Counter(result.verdict.kind for _, result in answers)
    counts = words("comma").join(
        f"{number} {words(f'kind.{kind.value}').lower()}" for kind, number in kinds.items()
    )
    title = line(words.many("summary", len(answers)), muted(words("aside", text=counts)))
    head = tuple(
        line(words(f"summary.{key}")) for key in ("prompt", "verdict", "cause", "first", "gap", "flips")
    )
    rows = tuple(_row(text, result, number == worst, words) for number, (text, result) in enumerate(answers))
    grid = Grid(rows, head, frozenset({4, 5}), flows=True)
    return Section("summary", title, (grid,))


def _row(text: str, result: Result, worst: bool, words: Words) -> tuple[Cell, ...]:
    shown = printable(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
    verdict, impact = result.verdict, result.impact
    place = result.origin or result.first
    first = "" if place is None else place.op
    flips = "" if impact is None or impact.top1_flips is None else str(impact.top1_flips)
    gap = "" if impact is None else size(impact.max_abs)
    prompt: Span | str = strong("▸ " + shown) if worst else "  " + shown
    kind = words(f"kind.{verdict.kind.value}")
    return tuple(line(cell) for cell in (prompt, kind, verdict.mechanism or "", first, gap, flips))
