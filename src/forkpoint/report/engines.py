"""The report of an engine against a reference: verdict, question, first op, cost, table of ops, what else there is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from forkpoint.report import identity
from forkpoint.report.document import (
    Block,
    Document,
    Fact,
    Grid,
    Line,
    Paragraph,
    Role,
    Section,
    Span,
    code,
    line,
    muted,
    strong,
)
from forkpoint.report.numbers import count, short, times
from forkpoint.report.page import page_of
from forkpoint.report.status import KIND_ROLES
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.engines.answer import EngineComparison, EngineOp

SHORT = 8
"""Rows of the table in the short report: those that are farthest from float64."""
_ROLES = {
    "identical": Role.GOOD,
    "rounding": Role.GOOD,
    "differs": Role.BAD,
    "mislabelled": Role.CAUTION,
    "not compared": Role.MUTED,
}


def page(comparison: EngineComparison, words: Words) -> str:
    """With every op."""
    about = identity.question(comparison.call, "", "", 0, words)
    return page_of(Document((about, *detailed(comparison, words).sections)), words)


def detailed(comparison: EngineComparison, words: Words) -> Document:
    """The same as `document` with every op, not those alone that are farthest from float64."""
    return document(comparison, words, details=True)


def document(comparison: EngineComparison, words: Words, *, details: bool = False) -> Document:
    """The verdict, whether both were asked the same, the first op, the cost, the ops."""
    sections = [_verdict(comparison, words), _question(comparison, words)]
    sections += [
        section for section in (_first(comparison, words), _cost(comparison, words)) if section is not None
    ]
    if comparison.ops:
        sections.append(_table(comparison, words, details=details))
    if comparison.listed:
        sections.append(_listed(comparison, words, details=details))
    if comparison.notes:
        notes = tuple(Paragraph(line(words.sentence(note))) for note in comparison.notes)
        sections.append(Section("notes", line(words("notes")), notes))
    return Document(tuple(sections))


def _verdict(comparison: EngineComparison, words: Words) -> Section:
    title = words(f"kind.{comparison.verdict.value}")
    if comparison.mechanism is not None:
        title += f" ({words.name('mechanism', comparison.mechanism)})"
    named = words(
        "engines.pair",
        engine=f"{comparison.engine} {comparison.version}".strip(),
        reference=comparison.reference,
    )
    blocks: list[Block] = [Paragraph(line(muted(named))), Paragraph(line(words.sentence(comparison.summary)))]
    if comparison.switch:
        blocks.append(Fact(words("engines.switch"), (line(words.phrase(comparison.switch)),)))
    return Section("verdict", line(Span("● " + title, KIND_ROLES[comparison.verdict])), tuple(blocks))


def _question(comparison: EngineComparison, words: Words) -> Section:
    facts = [
        Fact(words(f"check.{check.name}"), (_outcome(check.outcome, words.sentence(check.text)),))
        for check in comparison.question
    ]
    return Section("question", line(words("engines.question")), tuple(facts))


def _outcome(outcome: str, text: str) -> Line:
    role = {"same": Role.PLAIN, "differs": Role.BAD}.get(outcome, Role.CAUTION)
    return line(Span(text, role))


def _first(comparison: EngineComparison, words: Words) -> Section | None:
    first = comparison.first
    if first is None:
        return None
    assert first.error is not None and first.reference_error is not None and first.times is not None
    facts = (
        Fact(words("column.op"), (line(strong(first.op), muted(f"  {first.source}")),)),
        Fact(words("column.reference"), (line(code(first.reference), muted(f"  {first.reference_source}")),)),
        Fact(
            words("engines.away"),
            (line(words("engines.away.both", a=short(first.error), b=short(first.reference_error))),),
        ),
        Fact(words("column.times"), (line(times(first.times)),)),
        Fact(words("engines.where"), (line(_where(first, words)),)),
    )
    return Section("first", line(words("engines.first")), facts)


def _where(row: EngineOp, words: Words) -> str:
    return words(
        "engines.where.first", sample=row.sample, position=row.position, n=count(row.differing), m=count(row.compared)
    )  # fmt: skip


def _cost(comparison: EngineComparison, words: Words) -> Section | None:
    facts: list[Block] = []
    cost = comparison.cost
    if cost is not None:
        gaps = words("screening.gaps", mean=short(cost.mean_abs), most=short(cost.max_abs))
        facts += [
            Fact("|Δ log p|", (line(gaps),)),
            Fact(
                "KL",
                (line(words("screening.gaps", mean=short(cost.mean_kl), most=short(cost.max_kl))),),
            ),
            Fact(words("engines.ratio"), (line(f"{cost.ratio:.6g}"),)),
            Fact(
                words("engines.flips"),
                (line(words("engines.flips.of", n=count(cost.top1_flips), m=count(cost.tokens))),),
            ),
        ]
    if comparison.reported is not None:
        text = f"{words(f'screening.{comparison.reported.cause}')}: {words.sentence(comparison.reported.summary)}"
        facts.append(Fact(words("engines.reported"), (line(text),)))
    return Section("cost", line(words("screening.cost")), tuple(facts)) if facts else None


def _table(comparison: EngineComparison, words: Words, *, details: bool) -> Section:
    rows = list(comparison.ops)
    numbers = Counter(row.status for row in rows)
    summed = ", ".join(f"{count(n)} {words(f'held.{status}')}" for status, n in numbers.items())
    blocks: list[Block] = [Paragraph(line(summed))]
    shown = rows if details else sorted(rows, key=lambda row: -(row.times or 0.0))[:SHORT]
    if not details and len(rows) > len(shown):
        blocks.append(Paragraph(line(muted(words("engines.farthest", n=len(shown))))))
    head = (
        *(line(words(f"column.{name}")) for name in ("op", "reference", "error", "own", "times")),
        line(""),
    )
    cells = tuple(
        (
            line(row.op), line(code(row.reference)), line(_figure(row.error)), line(_figure(row.reference_error)),
            line("" if row.times is None else times(row.times)),
            line(Span(words(f"held.{row.status}"), _ROLES[row.status])),
        )
        for row in shown
    )  # fmt: skip
    blocks.append(Grid(cells, head, frozenset({2, 3, 4}), flows=True))
    return Section("compared", line(words("engines.ops")), tuple(blocks))


def _figure(value: float | None) -> str:
    return "" if value is None else short(value)


def _listed(comparison: EngineComparison, words: Words, *, details: bool) -> Section:
    numbers = Counter(one.status for one in comparison.listed)
    summed = words(
        "engines.listed.count", n=count(len(comparison.listed)), compared=count(numbers["compared"]), within=count(numbers["within"]),
        listed=count(numbers["listed"]),
    )  # fmt: skip
    blocks: list[Block] = [Paragraph(line(summed))]
    wanted = [one for one in comparison.listed if details or one.status == "listed"]
    for one in wanted:
        why = words.phrase(one.reason) if one.reason else ""
        part = f"→ {one.part_of}" if one.part_of else ""
        text = "  ".join(part for part in (one.source, part, why) if part)
        blocks.append(Fact(one.op, (line(muted(text)),)))
    return Section("listed", line(words("engines.listed")), tuple(blocks))
