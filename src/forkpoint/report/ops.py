"""Every captured op by name: the table that `--ops` asks for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

from forkpoint.report.changes import counterpart
from forkpoint.report.document import Cell, Grid, Paragraph, Section, code, line, muted, strong
from forkpoint.report.numbers import count, either, shapes
from forkpoint.report.place import module_name
from forkpoint.report.status import marked

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import OpRow, Result


def section(result: Result, words: Words, matching: str | None = None) -> Section:
    """The ops in the order of execution, under the module that called them.

    Args:
        result, words: as for every section.
        matching: only those whose name, variable or source this pattern fits, anywhere in it; `*` stands for anything.
    """
    whole = count(len(result.ops))
    shown = [row for row in result.ops if matching is None or _fits(row, matching)]
    number = (
        whole
        if matching is None
        else words("ops.matching", n=count(len(shown)), whole=whole, pattern=matching)
    )
    title = line(words("ops"), muted(f"  {number}"))
    if not shown:
        none = () if result.ops else (Paragraph(line(words("ops.none"))),)
        return Section("ops", title, none)
    heads = tuple(
        line(words(f"ops.{key}")) for key in ("function", "variable", "status", "source", "shape", "dtype")
    )
    rows: list[tuple[Cell, ...]] = []
    for module, group in groupby(shown, key=lambda row: row.module):
        rows.append((line(strong(module_name(module, words))),))
        for row in group:
            rows.append(_row(row, words))
            for text in (words.phrase(row.reason) if row.reason else "", counterpart(row, words)):
                if text:
                    rows.append((line(muted(f"    {text}")),))
    return Section("ops", title, (Grid(tuple(rows), heads, flows=True),))


def _fits(row: OpRow, pattern: str) -> bool:
    return any(
        fnmatchcase(text, f"*{pattern}*")
        for text in (row.op, row.variable or "", row.source, row.op_b, row.source_b)
    )


def _row(row: OpRow, words: Words) -> tuple[Cell, ...]:
    function, variable = row.function + (f"[{row.output}]" if row.output else ""), row.variable or ""
    if not row.source:  # what goes into a module: `input:NAME`
        function, _, variable = function.partition(":")
    status = [marked(row.status, words)]
    if row.status == "differs":
        status.append(
            muted(f" {words('ops.differing', part=count(row.differing), whole=count(row.compared))}")
        )
    if row.passes > 1:
        status.append(muted(f" ×{count(row.passes)}"))
    return (
        line(function),
        line(code(variable)),
        line(*status),
        line(muted(row.source if row.source_b in ("", row.source) else f"{row.source} → {row.source_b}")),
        line(shapes(row.shape_a, row.shape_b)),
        line(either(row.dtype_a, row.dtype_b)),
    )
