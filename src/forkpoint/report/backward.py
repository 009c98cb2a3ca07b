"""The gradients: which differs first in the backward pass, whether that is rounding, and those of the parameters."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from forkpoint.printable import NO_BREAK
from forkpoint.report import divergence
from forkpoint.report.answer import finding
from forkpoint.report.document import (
    Block,
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
from forkpoint.report.numbers import count, pair, short
from forkpoint.result import VerdictKind

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import Backward, Divergence, ParameterGradient, Result

PARAMETERS_SHOWN = 6
"""Parameters that the report lists; the JSON has them all."""


def section(result: Result, words: Words, *, brief: bool = False) -> Section | None:
    """What came of the backward pass; None where it was not asked for.

    Args:
        brief: without evidence, counts and notes, and of two places only the one that is more than rounding.
    """
    backward = result.backward
    if backward is None:
        return None
    blocks: list[Block] = [Paragraph(_conclusion(backward, words))]
    if not brief:
        a, b = pair(backward.loss_a, backward.loss_b)
        same = backward.loss_a == backward.loss_b
        blocks.append(
            Fact(
                words("loss"),
                (line(words("loss.same", loss=a) if same else f"A{NO_BREAK}{a}   B{NO_BREAK}{b}"),),
            )
        )
    blocks += _places(backward, result, words, brief=brief)
    blocks.append(Fact(words("backward.parameters"), _parameters(backward.parameters, words, brief=brief)))
    if not brief:
        blocks.append(Fact(words("backward.ops"), (line(_counts(backward, words)),)))
        blocks += [
            Fact(words.name("probe", probe.name), (line(finding(probe, words)),))
            for probe in backward.evidence
        ]
        blocks += [Paragraph(line(muted(words.sentence(note)))) for note in backward.notes]
    return Section("backward", line(words("backward")), tuple(blocks))


def beside(verdict: Section, result: Result, words: Words) -> Section:
    """The verdict, which is of the forward pass, with what came of the gradients where they were asked for.

    Where these are not proved to be rounding, the advice that nothing is to repair is of the forward pass alone.

    Args:
        verdict: the section of `answer.verdict`.
        result: what `compare` returned.
        words: the language.
    """
    backward = result.backward
    if backward is None:
        return verdict
    blocks = list(verdict.blocks)
    settled = backward.identical or backward.rounding is True
    if not settled and result.verdict.kind in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING):
        advice = words("advice")
        blocks = [block for block in blocks if not (isinstance(block, Fact) and block.label == advice)]
        blocks.append(Fact(advice, (line(words("advice.backward")),)))
    above = [block for block in blocks if isinstance(block, Paragraph)]
    gradients = Fact(words("backward.label"), (_conclusion(backward, words),))
    return replace(verdict, blocks=(*above, gradients, *blocks[len(above) :]))


def _conclusion(backward: Backward, words: Words) -> Line:
    if backward.identical:
        return line(Span(words("backward.identical"), Role.GOOD))
    if not _compared(backward):
        return line(Span(words("backward.nothing"), Role.CAUTION))
    if backward.rounding is not None:
        if backward.rounding:
            unsteady = any(probe.name == "repeat" for probe in backward.evidence)
            key = "backward.unsteady" if unsteady else "backward.rounding"
            return line(Span(words(key), Role.CAUTION if unsteady else Role.GOOD))
        return line(Span(words("backward.differs"), Role.BAD))
    tried = any(probe.name == "precision" for probe in backward.evidence)
    return line(Span(words("backward.unknown" if tried else "backward.untried"), Role.CAUTION))


def _compared(backward: Backward) -> bool:
    return any(row.status in ("equal", "differs") for row in (*backward.ops, *backward.parameters))


def _places(backward: Backward, result: Result, words: Words, *, brief: bool) -> list[Block]:
    """Where gradients differ first, and where more than rounding begins."""
    first, origin = backward.first, backward.origin
    if backward.identical or not _compared(backward):
        return []
    if first is None and origin is None:
        return [Paragraph(line(words("backward.weights")), "→ ")]
    blocks: list[Block] = []
    same = first is not None and origin is not None and divergence.same_place(first, origin)
    if first is not None and (same or origin is None or not brief):
        blocks += [
            Paragraph(line(words("backward.first"))),
            *_place(first, result, words, brief=brief, alike=result.first is None and not backward.notes),
        ]
    if same and not brief:
        blocks.append(Paragraph(line(words("backward.same")), "→ "))
    elif origin is not None and not same:
        alike = result.verdict.kind in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)
        blocks += [
            Paragraph(line(words("backward.origin"))),
            *_place(origin, result, words, brief=brief, alike=alike),
        ]
    elif backward.rounding is False and origin is None:
        blocks.append(Paragraph(line(words("backward.weights.origin")), "→ "))
    return blocks


def _place(gradient: Divergence, result: Result, words: Words, *, brief: bool, alike: bool) -> list[Block]:
    """One gradient that differs.

    Args:
        alike: whether what the forward pass made is equal in both runs, so that only the backward pass can be at fault.
    """
    shown = divergence.place_and_values(gradient, result, words, brief=brief)
    blocks: list[Block] = [Fact(words("backward.op"), shown[0].body), *shown[1:]]
    rows = [divergence.one_input(item, words) for item in gradient.inputs]
    inputs = Grid(tuple(rows), flows=True) if rows else (line(muted(words("backward.made.none"))),)
    blocks.append(Fact(words("backward.made"), inputs))
    if gradient.note:
        blocks.append(Paragraph(line(words.sentence(gradient.note)), "→ "))
    elif gradient.inputs and not brief and {item.status for item in gradient.inputs} == {"equal"}:
        key = "backward.made.equal" if len(gradient.inputs) == 1 else "backward.made.among"
        key = key if alike else "backward.made.forward"
        blocks.append(Paragraph(line(words(key)), "→ "))
    return blocks


def _parameters(
    gradients: tuple[ParameterGradient, ...], words: Words, *, brief: bool
) -> tuple[Line, ...] | Grid:
    """How many gradients of parameters differ, and those that are farthest apart."""
    compared = [one for one in gradients if one.status != "not compared"]
    apart = [one for one in compared if one.status == "differs"]
    beyond = [one for one in apart if one.rounding is False]
    summary = (
        words("backward.parameters.some", part=count(len(apart)), whole=count(len(compared)))
        if apart
        else words("backward.parameters.equal", n=count(len(compared)))
    )
    parts = [summary]
    if beyond:
        parts.append(words("backward.parameters.beyond", n=count(len(beyond))))
    if len(gradients) > len(compared):
        parts.append(words("backward.parameters.missing", n=count(len(gradients) - len(compared))))
    head = line(words("comma").join(parts))
    if brief or not apart:
        return (head,)
    farthest = sorted(beyond or apart, key=lambda one: -inf if one.relative is None else -one.relative)
    rows = [(head,), *(_parameter(one, words) for one in farthest[:PARAMETERS_SHOWN])]
    if len(farthest) > PARAMETERS_SHOWN:
        rows.append((line(muted(words.many("origins.more", len(farthest) - PARAMETERS_SHOWN))),))
    return Grid(tuple(rows), flows=True)


def _parameter(one: ParameterGradient, words: Words) -> tuple[Line, ...]:
    relative = (
        words("backward.nonfinite")
        if one.relative is None
        else words("backward.relative", relative=short(one.relative))
    )
    cosine = "" if one.cosine is None else words("backward.cosine", cosine=f"{one.cosine:.6f}")
    beyond = strong(words("backward.beyond")) if one.rounding is False else ""
    return line(code(one.name)), line(relative), line(muted(cosine)), line(beyond)


def _counts(backward: Backward, words: Words) -> str:
    numbers = Counter(row.status for row in backward.ops)
    equal, differs = numbers["equal"], numbers["differs"]
    rest = len(backward.ops) - equal - differs
    return words("backward.ops.counts", equal=count(equal), differs=count(differs), missing=count(rest))
