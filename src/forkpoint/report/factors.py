"""The table of `factors`: a line for each setting, and what matters most."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from forkpoint.report import counts, identity
from forkpoint.report.document import (
    Cell,
    Document,
    Grid,
    Paragraph,
    Role,
    Section,
    Span,
    code,
    line,
    muted,
    strong,
)
from forkpoint.report.numbers import shape, short
from forkpoint.report.page import plain_page
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.questions.answers import FactorRow, Factors
    from forkpoint.result import RunSummary

COLUMNS = ("setting", "verdict", "cause", "gap", "loss", "kl", "flips", "seconds")


def page(factors: Factors, words: Words) -> str:
    """What matters most first."""
    _, table, matters, *rest = document(factors, words).sections
    text = sentence(factors, words.lang)
    title = line(Span("● " + text, Role.CAUTION if factors.matters else Role.GOOD))
    answer = replace(matters, key="verdict", title=title, blocks=())
    return plain_page(text, _header(factors, words), [answer, table, *rest], words)


def _header(factors: Factors, words: Words) -> Section:
    return identity.named(factors.call, factors.a, factors.b, words)


def sentence(factors: Factors, lang: str = "en") -> str:
    """What matters most, in one sentence; in another what matters as much."""
    words = Words(lang)
    text = _most(factors, words)
    if not factors.as_much:
        return text
    others = words("comma").join(words.name("setting", row.setting) for row in factors.as_much)
    return words("factors.alike", said=text, settings=others)


def _most(factors: Factors, words: Words) -> str:
    base, row = factors.rows[0], factors.matters
    if row is None:
        return words("factors.nothing")
    setting = words.name("setting", row.setting)
    if inf in (base.gap, row.gap):
        key = "factors.infinite" if row.gap == inf else "factors.finite"
        return words(key, setting=setting)
    assert base.gap is not None and row.gap is not None
    key = "factors.rises" if row.gap > base.gap else "factors.falls"
    return words(key, setting=setting, a=short(base.gap), b=short(row.gap))


def document(factors: Factors, words: Words) -> Document:
    """The table, what could not be made, and what matters most."""
    rows = [row for row in factors.rows if not row.reason]
    refused = [row for row in factors.rows if row.reason]
    runs = words("factors.runs", a=_run(factors.a, words), b=_run(factors.b, words))
    head = tuple(line(words(f"factors.{key}")) for key in COLUMNS)
    grid = Grid(tuple(_row(row, words) for row in rows), head, frozenset({3, 4, 5, 6, 7}), flows=True)
    where = ", ".join(part for part in (factors.a.dtype, factors.a.attention, factors.a.device) if part)
    about = _header(factors, words)
    sections = [
        replace(about, blocks=about.blocks[:-2]),  # the runs stand in the title of the table
        Section("factors", line(runs, muted(words("aside", text=where))), (grid,)),
        Section("matters", (), (Paragraph(line(strong(sentence(factors, words.lang)))),)),
    ]
    places: dict[str, list[str]] = {}
    for row in rows:
        if (op := row.origin or row.first) is not None:
            places.setdefault(op, []).append(words.name("setting", row.setting))
    if places:
        paragraphs = tuple(
            Paragraph(line(code(op), words("colon"), words("comma").join(settings)))
            for op, settings in places.items()
        )
        sections.append(Section("places", line(words("factors.first")), paragraphs))
    if refused:
        paragraphs = tuple(
            Paragraph(
                line(words.name("setting", row.setting) + words("colon"), muted(words.message(row.reason)))
            )
            for row in refused
        )
        sections.append(Section("refused", line(words("factors.refused")), paragraphs))
    if (notes := counts.notes(factors, words)) is not None:
        sections.append(notes)
    return Document(tuple(sections))


def _run(run: RunSummary, words: Words) -> str:
    shapes = next(iter(run.calls), {})
    size = next(iter(shapes.values()), None)
    name = words.phrase(run.name)
    return name if size is None else f"{name} {shape(size)}"


def _row(row: FactorRow, words: Words) -> tuple[Cell, ...]:
    setting = words.name("setting", row.setting)
    kind = "" if row.verdict is None else words(f"verdict.{row.verdict.value}")
    figures = (_figure(value) for value in (row.max_abs, row.loss_gap, row.max_kl))
    flips = "" if row.top1_flips is None else str(row.top1_flips)
    cells = (setting, kind, row.mechanism or "", *figures, flips, f"{row.seconds:.0f}")
    return tuple(line(cell) for cell in cells)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
