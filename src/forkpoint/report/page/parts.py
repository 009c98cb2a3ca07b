"""The sections of the page: those of the report, and what only a page has room for."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from forkpoint.report import drift
from forkpoint.report.build import document
from forkpoint.report.document import (
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
from forkpoint.report.numbers import count
from forkpoint.report.page.drawing import MAX_OPS, columns_together, mark
from forkpoint.report.runs import ENTRIES_SHOWN
from forkpoint.report.safe import code_line, quoted
from forkpoint.report.status import marked

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import InputRow, OpRow, Result

ORDER = (
    "verdict", "impact", "first", "origin", "backward", "map", "drift", "ops", "context", "evidence", "unfinite", "runs", "tokens",
    "configuration", "replaced", "integers", "counts", "missing", "notes", "environment", "reproduce",
)  # fmt: skip
MISSING_SHOWN = 300
ROWS_SHOWN = 16
"""Rows of what goes into each run."""
TOKENS_SHOWN = 512
OF_TRACES = ("forkpoint compare ", "fp.compare_traces(")
"""How the call of a comparison begins that had traces and no models."""
NEAR = 12
"""Lines of source before and after the divergence from which ops are shown."""
_WORST = ("differs", "only in a", "only in b", "not compared", "equal", "view")


def sections(result: Result, words: Words, *, interactive: bool) -> list[Section]:
    """All sections in the order of the page; the runs' names stand in its head."""
    report = document(replace(result, versions={}), lang=words.lang)
    by_key = {section.key: section for section in report.sections}
    own = [
        drift.section(result, words, most=max(1, len(result.drift))),
        _context(result, words),
        _tokens(result, words),
        _configuration(result, words),
        _missing(result, words),
        _environment(result, words),
        reproduce(result, words),
        *((_map(result, words), _ops(result, words)) if interactive else ()),
    ]
    by_key |= {section.key: section for section in own if section is not None}
    return [by_key[key] for key in ORDER if key in by_key]


def _map(result: Result, words: Words) -> Section | None:
    if not result.drift:
        return None
    sentences = [words("page.map.how")]
    marked = mark(result)
    if marked is not None:
        sentences.append(words("page.map.mark"))
        row, place = marked
        if any(gap == 0 for *at, gap in result.drift[row].per_token if tuple(at) == place):
            sentences.append(words("page.map.within"))
    together = columns_together(result)
    if together > 1:
        sentences.append(words("page.map.together", n=count(together)))
    return Section("map", line(words("page.map")), (Paragraph(line(muted(" ".join(sentences)))),))


def _ops(result: Result, words: Words) -> Section:
    title = line(words("ops"), muted(f"  {count(len(result.ops))}"))
    blocks = ()
    if len(result.ops) > MAX_OPS:
        numbers = {"n": count(MAX_OPS), "whole": count(len(result.ops))}
        blocks = (Paragraph(line(muted(words("page.ops.some", **numbers)))),)
    return Section("ops", title, blocks)


def _context(result: Result, words: Words) -> Section | None:
    """The lines of source around the divergence whose values were seen, and how these compared."""
    divergence = result.origin or result.first
    file, number = _place(divergence.source) if divergence is not None else ("", None)
    if divergence is None or number is None:
        return None
    lines: dict[int, OpRow] = {}
    for row in result.ops:
        other, at = _place(row.source)
        if row.module == divergence.module and other == file and at is not None and abs(at - number) <= NEAR:
            held = lines.get(at)
            if held is None or _rank(row) < _rank(held):
                lines[at] = row
    if len(lines) < 2:
        return None
    rows = tuple(
        (
            line(strong(f"▸ {at}") if at == number else muted(str(at))),
            line(code(code_line(row.code))),
            line(marked(row.status, words)),
        )
        for at, row in sorted(lines.items())
    )
    title = line(words("page.context"), muted(f"  {file}"))
    why = Paragraph(line(muted(words("page.context.why"))))
    return Section("context", title, (Grid(rows, right=frozenset({0})), why))


def _place(source: str) -> tuple[str, int | None]:
    """File and line of `file.py:12`."""
    file, _, number = source.rpartition(":")
    return file, int(number) if number.isdecimal() else None


def _rank(row: OpRow) -> int:
    return _WORST.index(row.status) if row.status in _WORST else len(_WORST)


def _tokens(result: Result, words: Words) -> Section | None:
    """What goes into each run, token by token; the first divergence's token stands out."""
    runs = [(words("run.a"), result.a.rows), (words("run.b"), result.b.rows)]
    if not any(rows for _, rows in runs):
        return None
    facts = tuple(
        Fact(_row_name(name, row, rows, words), (_row_line(row, result, words),))
        for name, rows in runs
        for row in rows[:ROWS_SHOWN]
    )
    rest = sum(max(0, len(rows) - ROWS_SHOWN) for _, rows in runs)
    more = (Paragraph(line(muted(words.many("page.tokens.more", rest)))),) if rest else ()
    return Section("tokens", line(words("page.tokens")), (*facts, *more))


def _row_name(run: str, row: InputRow, rows: tuple[InputRow, ...], words: Words) -> str:
    parts = [run]
    if any(other.call for other in rows):
        parts.append(words("where.call", call=row.call))
    if any(other.row for other in rows):
        parts.append(words("page.row", row=row.row))
    return words("comma").join(parts)


def _row_line(row: InputRow, result: Result, words: Words) -> Line:
    first = result.first
    place = None if first is None else (first.sample, first.position)
    spans: list[Span | str] = []
    shown = row.columns[:TOKENS_SHOWN]
    for padding, group in groupby(shown, key=lambda column: column[1] is None):
        if padding:
            spans += [muted(words.many("page.padding", len(list(group)))), " "]
            continue
        for sample, position, text in group:
            token = quoted(text) if text is not None else str(position)
            spans += [Span(token, Role.BAD if (sample, position) == place else Role.CODE), " "]
    if row.width > len(shown):
        spans.append(muted(words("flips.more", n=count(row.width - len(shown)))))
    return line(*spans)


def _configuration(result: Result, words: Words) -> Section | None:
    """All entries that differ, where the summary of the runs has not all of them."""
    if len(result.configuration) <= ENTRIES_SHOWN:
        return None
    rows = tuple(
        (line(code(item.name)), line(item.value_a or "–"), line(item.value_b or "–"))
        for item in result.configuration
    )
    head = (line(), line(words("run.a")), line(words("run.b")))
    return Section("configuration", line(words("page.configuration")), (Grid(rows, head),))


def _missing(result: Result, words: Words) -> Section | None:
    """Every value that could not be compared, with the reason."""
    missing = sorted(result.not_compared, key=lambda value: not value.floating)
    if not missing:
        return None
    rows = tuple(
        (
            line(value.op),
            line(muted(value.source)),
            line(words.phrase(value.reason) or words("counts.unexplained")),
        )
        for value in missing[:MISSING_SHOWN]
    )
    title = line(words("page.missing"), muted(f"  {count(len(missing))}"))
    rest = len(missing) - MISSING_SHOWN
    more = (Paragraph(line(muted(words("flips.more", n=count(rest))))),) if rest > 0 else ()
    return Section("missing", title, (Grid(rows), *more))


def _environment(result: Result, words: Words) -> Section | None:
    if not result.versions:
        return None
    rows = tuple((line(muted(name)), line(version)) for name, version in result.versions.items())
    return Section("environment", line(words("page.environment")), (Grid(rows),))


def reproduce(result: Result, words: Words) -> Section | None:
    """How to get the divergent op alone; of recorded traces nobody can, as they have no models."""
    if result.first is None or result.call.startswith(OF_TRACES):
        return None
    steps = (
        ("page.reproduce.save", 'result.save_scene("scene")'),
        ("page.reproduce.command", "--scene scene"),
        ("page.reproduce.replay", "forkpoint replay scene"),
        ("page.reproduce.script", "forkpoint script scene -o repro.py"),
    )
    rows = tuple((line(Span(words(key))), line(code(text))) for key, text in steps)
    return Section("reproduce", line(words("page.reproduce")), (Grid(rows, flows=True),))
