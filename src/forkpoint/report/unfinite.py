"""What makes NaN and infinities: for each run the op that is the first to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Fact, Line, Paragraph, Section, code, line, muted, strong
from forkpoint.report.numbers import shape, short
from forkpoint.report.place import module_name
from forkpoint.report.safe import code_line

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import NonFinite, Result


def section(result: Result, words: Words) -> Section | None:
    """For each run the first op that makes NaN or infinity; None where neither run has one to tell of."""
    by_run = ("run.a", result.first_nonfinite_a), ("run.b", result.first_nonfinite_b)
    blocks: list[Fact | Paragraph] = []
    for run, op in by_run:
        if op is not None:
            blocks.append(Fact(words(run), _lines(op, words)))
    return Section("unfinite", line(words("unfinite")), tuple(blocks)) if blocks else None


def _lines(op: NonFinite, words: Words) -> tuple[Line, ...]:
    lines = [line(module_name(op.module, words), "/", strong(op.function))] if op.function else []
    if not op.function and op.cause != "input":
        lines.append(line(strong(module_name(op.module, words))))
    if op.source:
        lines.append(line(op.source))
    text = code_line(op.code)
    if text:
        lines.append(line(code(text)))
    parts = [words("unfinite.kind"), " ", strong({"nan": "NaN"}.get(op.kind, op.kind))]
    if op.made_of:
        parts.append(" " + words("unfinite.of", values=", ".join(map(short, op.made_of))))
    if op.index:
        parts.append(muted("  " + words("unfinite.at", index=shape(op.index))))
    if op.cause != "input":
        lines.append(line(*parts))
    why = words(f"unfinite.{op.cause}", **_values(op))
    lines.append(line("→ ", why))
    if op.leads_to:
        lines.append(
            line(words("unfinite.leads"), words("colon"), words("unfinite.leads.nan", op=op.leads_to))
        )
    return tuple(lines)


def _values(op: NonFinite) -> dict[str, str]:
    return {"dtype": op.dtype or ""} if op.cause == "overflow" else {"name": op.name}
