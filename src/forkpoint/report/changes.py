"""Of two traces: where an op is in run B and how it was found there, and the lines that read otherwise."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from forkpoint.report.document import Cell, Grid, Line, Paragraph, Section, code, line, muted, strong
from forkpoint.report.place import module_name
from forkpoint.report.safe import code_line

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import Divergence, OpRow, Result

SHOWN = 12
"""Lines that the report shows; the JSON has those of every op."""


def section(result: Result, words: Words) -> Section | None:
    """The lines of both runs that are each other's and read otherwise, and those that one run alone has; None of one source.

    The first divergence comes first, the others in the order of execution.
    """
    pairs = Counter(_pair(row) for row in result.ops if row.code_b and row.code != row.code_b)
    if not pairs:
        return None
    alone = Counter(_pair(row) for row in result.ops if row.status.startswith("only in") and row.code)
    ordered = [*dict.fromkeys(_pair(row) for row in result.ops if _pair(row) in pairs or _pair(row) in alone)]
    differing = {_pair(row) for row in result.ops if row.status == "differs"}
    first = None if result.first is None else (result.first.source, result.first.source_b)
    ordered.sort(key=lambda pair: ((pair[0], pair[2]) != first, pair not in pairs))
    rows: list[tuple[Cell, ...]] = []
    for pair in ordered[:SHOWN]:
        rows += _rows(pair, pairs[pair] or alone[pair], words, differs=pair in differing)
    blocks: list[Grid | Paragraph] = [Grid(tuple(rows), flows=True)]
    if len(ordered) > SHOWN:
        blocks.append(Paragraph(line(muted(words.many("changes.more", len(ordered) - SHOWN)))))
    return Section("changes", line(words("changes")), tuple(blocks))


_Pair = tuple[str, str, str, str, str]
"""Place and line in run A, place and line in run B, how they were found to be one; of an op of one run, its status."""


def _pair(row: OpRow) -> _Pair:
    if row.status == "only in b":
        return "", "", row.source, row.code, row.status
    return row.source, row.code, row.source_b, row.code_b, row.matched or row.status


def _rows(pair: _Pair, number: int, words: Words, *, differs: bool) -> list[tuple[Cell, ...]]:
    source_a, code_a, source_b, code_b, how = pair
    rows: list[tuple[Cell, ...]] = []
    for run, source, text in (("A", source_a, code_a), ("B", source_b, code_b)):
        if source:
            rows.append((line(strong(run)), line(muted(source)), line(code(code_line(text)))))
    if how.startswith("only in"):
        phrase = words.name("status", how)
    else:
        phrase = words("matched.by", how=words.name("matched", how))
    more = (words("changes.differ"),) if differs else ()
    rows.append((line(muted(words("comma").join((words.many("changes.ops", number), phrase, *more)))),))
    return rows


def counterpart(row: OpRow | Divergence, words: Words) -> str:
    """Where an op is in run B and how it was found there; empty where that goes without saying."""
    if not row.matched or (row.matched in ("place", "text") and not row.module_matched):
        return ""
    module, _, function = row.op_b.rpartition("/")
    name = f"{module_name('' if module == '(model)' else module, words)}/{function}"
    place = words("aside", text=row.source_b) if row.source_b else ""
    return words("matched.in_b", op=f"{name}{place}", how=found_by(row, words))


def found_by(row: OpRow | Divergence, words: Words) -> str:
    """How an op of run B was found, and its module where that has another path."""
    parts = [words.name("matched", row.matched)]
    if row.module_matched:
        parts.append(words("matched.module", how=words.name("module_matched", row.module_matched)))
    return words("comma").join(parts)


def both_sources(divergence: Divergence) -> tuple[Line, ...]:
    """The op's place and line in each run, where they are not the same."""
    lines: list[Line] = []
    for run, source, text in (
        ("A", divergence.source, divergence.code),
        ("B", divergence.source_b, divergence.code_b),
    ):
        lines.append(line(strong(run), " ", source or "?"))
        if text := code_line(text):
            lines.append(line(code(text)))
    return tuple(lines)
