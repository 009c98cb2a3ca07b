"""Every captured op by name: the table that `--ops` asks for."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from forkpoint.report.document import Cell, Grid, Paragraph, Section, code, line, muted, strong
from forkpoint.report.numbers import count, either, shapes
from forkpoint.report.place import module_name
from forkpoint.report.status import marked

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import OpRow, Result


def section(result: Result, words: Words) -> Section:
    """All ops in the order of execution, under the module that called them."""
    title = line(words("ops"), muted(f"  {count(len(result.ops))}"))
    if not result.ops:
        return Section("ops", title, (Paragraph(line(words("ops.none"))),))
    heads = tuple(
        line(words(f"ops.{key}")) for key in ("variable", "function", "source", "shape", "dtype", "status")
    )
    rows: list[tuple[Cell, ...]] = []
    for module, group in groupby(result.ops, key=lambda row: row.module):
        rows.append((line(strong(module_name(module, words))),))
        for row in group:
            rows.append(_row(row, words))
            if row.reason:
                rows.append((line(muted(f"    {words.phrase(row.reason)}")),))
    return Section("ops", title, (Grid(tuple(rows), heads, flows=True),))


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
        line(code(variable)),
        line(function),
        line(muted(row.source)),
        line(shapes(row.shape_a, row.shape_b)),
        line(either(row.dtype_a, row.dtype_b)),
        line(*status),
    )
