"""The report of an audit: whether it holds, each layout that breaks it, and how exact it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Document, Line, Paragraph, Role, Section, Span, line, muted

if TYPE_CHECKING:
    from forkpoint.auditing.record import Accuracy, Audit, Break
    from forkpoint.report.words import Words


def document(audit: Audit, words: Words) -> Document:
    """Whether it holds, in the title; then what breaks it."""
    lines = [
        line(muted(words.many("audit.subject", audit.tried, subject=audit.subject, largest=audit.largest)))
    ]
    if audit.breaking:
        lines.append(line(words("audit.sizes", sizes=_ranges(audit.breaking, words))))
    if audit.precision is not None:
        lines.append(_exactness(audit.precision, words))
    if audit.unfinished:
        lines.append(line(muted(words("audit.unfinished", what=words.phrase(audit.unfinished)))))
    verdict = Section("verdict", line(_answer(audit, words)), tuple(map(Paragraph, lines)))
    return Document((verdict, *(_break(one, words) for one in audit.breaks)))


def _answer(audit: Audit, words: Words) -> Span:
    if audit.holds:
        answer, role = words("audit.holds"), Role.GOOD
    elif audit.breaks:
        answer, role = words.many("audit.broken", len(audit.breaks)), Role.BAD
    elif not audit.tried:
        answer, role = words("audit.nothing"), Role.CAUTION
    else:
        answer, role = words("audit.worse"), Role.BAD
    return Span("● " + answer, role)


def _break(one: Break, words: Words) -> Section:
    """One layout that breaks it."""
    figures = {"differing": one.differing, "compared": one.compared, "gap": f"{one.gap:.3g}"}
    lines = [line(words("audit.figures", **figures))]
    if one.op is not None:
        lines.append(line(words("audit.first", op=words.phrase(one.op))))
    for size, names in zip((one.size, one.other), one.kernels or (), strict=False):
        lines.append(line(words("audit.kernels", size=size, names=", ".join(names) or words("audit.unseen"))))
    return Section(
        "break", line(words("audit.breaks", words=words.phrase(one.words))), tuple(map(Paragraph, lines))
    )


def _exactness(precision: Accuracy, words: Words) -> Line:
    own = {"mean": f"{precision.mean:.3g}", "largest": f"{precision.largest:.3g}"}
    if precision.reference_mean is None:
        return line(words("audit.exact", **own))
    others = {"other_mean": f"{precision.reference_mean:.3g}", "other": f"{precision.reference_largest:.3g}"}
    text = words("audit.reference", **own, **others)
    return line(text, *([" ", Span(words("audit.worse"), Role.BAD)] if precision.worse else []))


def _ranges(sizes: tuple[int, ...], words: Words) -> str:
    """Whole numbers with neighbours put together.

    >>> from forkpoint.report.words import Words
    >>> _ranges((1, 2, 3, 7, 9, 10), Words())
    '1 to 3, 7, 9 to 10'
    """
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    texts = (str(run[0]) if len(run) == 1 else words("audit.range", a=run[0], b=run[-1]) for run in runs)
    return words("comma").join(texts)
