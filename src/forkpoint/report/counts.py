"""What was compared and what was not, the integers that differ, and the notes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from forkpoint.report.document import Fact, Line, Paragraph, Section, Span, code, line, muted
from forkpoint.report.numbers import count
from forkpoint.report.place import module_name
from forkpoint.report.safe import code_line

if TYPE_CHECKING:
    from forkpoint.questions.answers import Factors
    from forkpoint.report.words import Words
    from forkpoint.result import OpRow, Result

FUNCTIONS_SHOWN = 6
REASONS_SHOWN = 6

_STATUSES = ("equal", "differs", "view", "only in a", "only in b", "not compared")


def section(result: Result, words: Words) -> Section:
    """How many ops agree, differ, have no partner or could not be compared, and why."""
    numbers = Counter(row.status for row in result.ops)
    statuses = [*_STATUSES, *sorted(set(numbers) - set(_STATUSES))]
    facts: list[Fact] = []
    for status in statuses:
        if status == "view" and not numbers[status]:
            continue
        lines = (
            [line(words.many("counts.values", numbers[status]))]
            if numbers[status]
            else [line(words("counts.none"))]
        )
        if status.startswith("only in") and numbers[status]:
            lines = [line(*lines[0], muted(words("colon") + _functions(result, status, words)))]
        if status == "not compared":
            lines = _missing(result, words)
        facts.append(Fact(words.name("status", status), tuple(lines)))
    return Section("counts", line(words("counts")), tuple(facts))


def _functions(result: Result, status: str, words: Words) -> str:
    """Which functions those ops call, the most frequent first."""
    numbers = Counter(row.function for row in result.ops if row.status == status).most_common()
    texts = [f"{count(number)}\u00a0×\u00a0{function}" for function, number in numbers[:FUNCTIONS_SHOWN]]
    rest = sum(number for _, number in numbers[FUNCTIONS_SHOWN:])
    if rest:
        texts.append(words.many("counts.functions", rest))
    return words("comma").join(texts)


def _missing(result: Result, words: Words) -> list[Line]:
    """The values that could not be compared, counted by reason."""
    listed = {(value.op, value.source) for value in result.not_compared}
    reasons = [(value.reason, value.floating) for value in result.not_compared]
    reasons += [
        (row.reason, row.floating)
        for row in result.ops
        if row.status == "not compared" and (row.op, row.source) not in listed
    ]
    if not reasons:
        return [line(words("counts.none"))]
    floating = sum(is_float for _, is_float in reasons)
    lines = [
        line(
            words.many("counts.values", len(reasons)),
            muted(words("aside", text=words("counts.floating", n=count(floating)))),
        )
    ]
    numbers = Counter(reason for reason, _ in reasons).most_common()
    for reason, number in numbers[:REASONS_SHOWN]:
        text = words.phrase(reason) or words("counts.unexplained")
        lines.append(line(muted(f"{count(number)}\u00a0×\u00a0"), text))
    if len(numbers) > REASONS_SHOWN:
        lines.append(line(muted(words.many("counts.more", len(numbers) - REASONS_SHOWN))))
    return lines


def integers(result: Result, words: Words) -> Section | None:
    """The first integer or bool value that differs."""
    first = result.first_integer
    if first is None:
        return None
    facts = (
        Fact(
            words("op"),
            (line(f"{module_name(first.module, words)}/{first.function}", *_returned(first, words)),),
        ),
        Fact(words("source"), _source(first)),
        Fact(words("differing"), (line(_coordinates(first, words)),)),
        Paragraph(line(muted(words("integers.why")))),
    )
    return Section("integers", line(words("integers")), facts)


def _returned(row: OpRow, words: Words) -> tuple[Span, ...]:
    return (muted(words("aside", text=row.dtype)),) if row.dtype else ()


def _source(row: OpRow) -> tuple[Line, ...]:
    text = code_line(row.code)
    return (line(row.source), line(code(text))) if text else (line(row.source),)


def _coordinates(row: OpRow, words: Words) -> str:
    return words("integers.coordinates", part=count(row.differing), whole=count(row.compared))


def notes(result: Result | Factors, words: Words) -> Section | None:
    """What else a reader should know, and the versions of the software."""
    blocks: list[Paragraph] = [Paragraph(line(words.sentence(text))) for text in result.notes]
    if result.versions:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        blocks.append(Paragraph(line(muted(versions))))
    return Section("notes", line(words("notes")), tuple(blocks)) if blocks else None
