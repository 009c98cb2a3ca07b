"""The table of a sweep: what came out how often, a line for each answer, where to look, what has no answer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from forkpoint.report.document import (
    Cell,
    Document,
    Fact,
    Grid,
    Paragraph,
    Role,
    Section,
    Span,
    code,
    line,
    muted,
)
from forkpoint.report.numbers import count
from forkpoint.report.page import page_of
from forkpoint.report.safe import quoted
from forkpoint.report.status import KIND_ROLES
from forkpoint.result import VerdictKind

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.sweeps.answer import Sweep, SweepRow

MOST = 60
"""Rows that are shown: of more, the worst."""
PLACES = 12
"""Answers whose op is named."""
PROMPT = 24
"""Characters of a prompt that are shown."""
QUESTION = 24
"""Characters of a question that fit into a column."""
COLUMNS = ("question", "model", "prompt", "setting", "verdict", "cause", "gap", "flips", "seconds")
WIDTH = 130
_RIGHT = ("gap", "flips", "seconds")


def page(sweep: Sweep, words: Words) -> str:
    """What came of the questions first."""
    about, *rest = document(sweep, words).sections
    role = {0: Role.GOOD, 1: Role.BAD}.get(sweep.status, Role.CAUTION)
    answer = Section("verdict", line(Span("● " + _counted(sweep, words), role)), ())
    facts = tuple(fact for fact in about.blocks if fact is not about.blocks[-2])
    return page_of(Document((replace(about, blocks=facts), answer, *rest)), words)


def document(sweep: Sweep, words: Words) -> Document:
    """The table, where to look, and what has no answer."""
    rows = (
        sorted(sweep.rows, key=_badness, reverse=True)[:MOST] if len(sweep.rows) > MOST else list(sweep.rows)
    )
    varied = _varied(sweep.rows)
    sections = [_header(sweep, words), _table(rows, varied, len(sweep.rows), words)]
    failing = [row for row in sweep.rows if _role(row) is Role.BAD and (row.origin or row.first)]
    if failing:
        paragraphs = tuple(
            Paragraph(line(_label(row, varied, words), words("colon"), code(row.origin or row.first or ""),
                           muted(words("aside", text=f"{sweep.folder}/results/{row.cell}.json"))))
            for row in failing[:PLACES]
        )  # fmt: skip
        more = words.many("sweep.more", len(failing) - PLACES)
        rest = (Paragraph(line(muted(more))),) if len(failing) > PLACES else ()
        sections.append(Section("places", line(words("sweep.places")), paragraphs + rest))
    by_reason: dict[str, list[SweepRow]] = {}
    for row in sweep.rows:
        if row.reason:
            by_reason.setdefault(row.reason, []).append(row)
    if by_reason:
        paragraphs = tuple(
            Paragraph(line(_labels(alike, varied, words), words("colon"), muted(words.message(reason))))
            for reason, alike in by_reason.items()
        )
        sections.append(Section("refused", line(words("sweep.unanswered")), paragraphs))
    return Document(tuple(sections))


def _header(sweep: Sweep, words: Words) -> Section:
    facts = [Fact(words("identity.call"), (line(code(sweep.call)),))] if sweep.call else []
    facts.append(Fact(words("sweep.questions"), (line(_counted(sweep, words)),)))
    facts.append(Fact(words("sweep.folder"), (line(code(sweep.folder)),)))
    return Section("header", (), tuple(facts))


def _counted(sweep: Sweep, words: Words) -> str:
    """How many questions there are, how many rows they have where each has not one, and what these say."""
    counts = sweep.counts()
    parts = [
        f"{words(f'verdict.{kind.value}')} {count(counts[kind.value])}"
        for kind in VerdictKind
        if counts[kind.value]
    ]
    without = Counter(_without_verdict(row) for row in sweep.rows if row.verdict is None)
    parts += [f"{words(key)} {count(without[key])}" for key in _WITHOUT if without[key]]
    numbers = [words.many("sweep.count", sweep.cells)]
    if len(sweep.rows) != sweep.cells:
        numbers.append(words.many("sweep.rows", len(sweep.rows)))
    whole = words("comma").join(numbers) + words("colon") + words("comma").join(parts)
    return whole + (words("aside", text=words("sweep.kept", n=count(sweep.kept))) if sweep.kept else "")


def _table(rows: list[SweepRow], varied: set[str], whole: int, words: Words) -> Section:
    """A line for each row, below the question where several were asked the same, or where it is long."""
    groups: dict[str, list[SweepRow]] = {}
    for row in rows:
        groups.setdefault(_question(row, varied), []).append(row)
    headed = len(groups) < len(rows) or max(map(len, groups)) > QUESTION
    left_out = {"model", "prompt", "setting"} - varied | ({"question"} if headed else set())
    shown = [name for name in COLUMNS if name not in left_out]
    lines: list[tuple[Cell, ...]] = []
    for question, alike in groups.items():
        lines += [(line(code(question)),)] if headed else []
        lines += [tuple(_cells(row, varied, words)[name] for name in shown) for row in alike]
    head = tuple(line(words(f"sweep.{name}")) for name in shown)
    grid = Grid(tuple(lines), head, frozenset(shown.index(name) for name in _RIGHT))
    notes = [words("sweep.engines")] if any(row.question == "engines" for row in rows) else []
    if whole > len(rows):
        notes.append(words("sweep.worst", n=count(len(rows)), whole=count(whole)))
    return Section("sweep", (), (grid, *(Paragraph(line(muted(text))) for text in notes)))


def _cells(row: SweepRow, varied: set[str], words: Words) -> dict[str, Cell]:
    if row.verdict is not None:
        verdict = words(f"verdict.{row.verdict.value}")
    else:
        verdict = words(_without_verdict(row))
    return {
        "question": line(_question(row, varied)),
        "model": line(_model(row)),
        "prompt": line(quoted(row.prompt, PROMPT)) if row.prompt else line(""),
        "setting": line(_setting(row, words)),
        "verdict": line(Span(verdict, _role(row))),
        "cause": line(row.mechanism or ""),
        "gap": line(_figure("inf" if row.nonfinite_apart else row.max_abs) or _none(row)),
        "flips": line(_none(row) if row.top1_flips is None else str(row.top1_flips)),
        "seconds": line(f"{row.seconds:.0f}"),
    }


def _role(row: SweepRow) -> Role:
    return _WITHOUT[_without_verdict(row)] if row.verdict is None else KIND_ROLES[row.verdict]


_WITHOUT = {
    "sweep.same": Role.GOOD, "sweep.holds": Role.GOOD, "sweep.breaks": Role.BAD, "sweep.none": Role.CAUTION,
}  # fmt: skip
"""What is said of a row without a verdict."""


def _without_verdict(row: SweepRow) -> str:
    if row.reason or row.status is None:
        return "sweep.none"
    if row.question == "audit":
        return "sweep.breaks" if row.status else "sweep.holds"
    return "sweep.same"


def _none(row: SweepRow) -> str:
    """What stands for a figure that an answer lacks; nothing where there is no answer."""
    return "–" if row.verdict is not None or row.question == "audit" else ""


def _figure(value: Any) -> str:
    return "" if value is None else f"{float(value):.2g}"


def _model(row: SweepRow) -> str:
    return row.model.rstrip("/").rpartition("/")[2] + (f"@{row.revision}" if row.revision else "")


def _question(row: SweepRow, varied: set[str]) -> str:
    """The question with those of its options that are not the same in all rows that have them."""
    options = json.loads(row.options)
    varying = {key: value for key, value in options.items() if key in varied and value is not False}
    return " ".join(
        [row.question, *(key if value is True else f"{key}={value}" for key, value in varying.items())]
    )


def _setting(row: SweepRow, words: Words) -> str:
    """What is set otherwise; of an audit, a layout or what was not tried."""
    kind, length, n = row.setting.partition(", length ")
    if length:
        return words("sweep.length", kind=words.name("setting", kind), n=n)
    return words.phrase(kind) if row.question == "audit" else words.name("setting", kind)


def _label(row: SweepRow, varied: set[str], words: Words) -> str:
    parts = [_model(row)] if "model" in varied else []
    parts.append(_question(row, varied))
    parts += [_setting(row, words)] if row.setting else []
    parts += [quoted(row.prompt, PROMPT)] if "prompt" in varied and row.prompt else []
    return " ".join(parts)


def _labels(rows: list[SweepRow], varied: set[str], words: Words) -> str:
    labels = [_label(row, varied, words) for row in rows]
    more = words("comma") + words.many("sweep.more", len(rows) - PLACES) if len(rows) > PLACES else ""
    return words("comma").join(labels[:PLACES]) + more


def _varied(rows: tuple[SweepRow, ...]) -> set[str]:
    """Names of what is not the same in all rows: `model`, `prompt`, `setting`, and options."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        options: dict[str, Any] = json.loads(row.options)
        for name, value in {**options, **_columns(row)}.items():
            seen.setdefault(name, set()).add(json.dumps(value))
    return {name for name, values in seen.items() if len(values) > 1}


def _columns(row: SweepRow) -> dict[str, Any]:
    named = {"prompt": row.prompt, "setting": row.setting}
    return {"model": [row.model, row.revision], **{name: value for name, value in named.items() if value}}


def _badness(row: SweepRow) -> tuple[int, float]:
    """Of several rows the greatest is the worst: one that fails before one that is not told, then the larger gap."""
    gap = float("inf") if row.nonfinite_apart else row.max_abs or 0.0
    return {Role.BAD: 2, Role.CAUTION: 1}.get(_role(row), 0), gap
