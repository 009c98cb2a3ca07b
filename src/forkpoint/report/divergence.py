"""The first divergence, and the origin: one op with its place, its two values and its inputs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from forkpoint.printable import NO_BREAK
from forkpoint.report import changes
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
from forkpoint.report.numbers import (
    common_prefix,
    count,
    either,
    exact,
    narrower,
    shape,
    shapes,
    share,
    short,
    size,
    ulps,
)
from forkpoint.report.place import module_name, where
from forkpoint.report.safe import code_line
from forkpoint.report.status import marked

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import Divergence, Element, InputComparison, Result

MODULES_SHOWN = 6
SOURCES_SHOWN = 40
"""Sources that the report lists; the JSON has them all."""
NOTICED = 1e-4
"""Share of the gap below which an origin closes nothing by itself."""
FEW = 1e7
"""Units in the last place above which their number says nothing: two values may then be told apart by their first digits."""
UNKNOWN = ("", "?")
"""The place in the source of what stands in no line of it."""
FAR = 10
"""How many times the first gap the largest is when both are shown."""


def first(result: Result, words: Words) -> Section:
    """The first op whose floating-point values differ, or that there is none."""
    title = line(words("first"))
    divergence = result.first
    if divergence is None:
        return Section("first", title, _none(result, words, "first.none.but"))
    blocks = _blocks(divergence, result, words)
    conclusion = _conclusion(divergence)
    if conclusion:
        blocks.append(Paragraph(line(words(conclusion)), "→ "))
    if result.identical:
        blocks.append(Paragraph(line(words("first.harmless")), "→ "))
    if result.origin is not None and same_place(divergence, result.origin):
        blocks.append(Paragraph(line(words("origin.same")), "→ "))
        blocks += _origins(result, words)
    return Section("first", title, tuple(blocks))


def _none(result: Result, words: Words, but: str) -> tuple[Paragraph, ...]:
    """That no op differs, and how many could not be compared."""
    missing = sum(value.floating for value in result.not_compared)
    if missing and not any(op.floating and op.status in ("equal", "differs", "view") for op in result.ops):
        return (Paragraph(line(words("first.nothing"))),)
    key = "first.none" if result.first_integer is None else "first.none.floating"
    paragraph = Paragraph(line(Span(words(key), Role.GOOD)))
    return (paragraph, Paragraph(line(words.many(but, missing)))) if missing else (paragraph,)


def brief(result: Result, words: Words) -> Section:
    """The origin if there is one, or else the first divergence: op, line of source, place and values, each in a line."""
    divergence = result.origin or result.first
    if divergence is None:
        return Section("first", line(words("first")), _none(result, words, "first.none.but.brief"))
    at = (divergence.source + words("comma"),) if divergence.source not in UNKNOWN else ()
    facts = [
        Fact(words("op"), _op(divergence, words)),
        Fact(words("where"), (line(*at, *_where(divergence, result, words)),)),
    ]
    if divergence.source_b:
        facts.append(Fact(words("source"), changes.both_sources(divergence)))
    elif text := code_line(divergence.code):
        facts.append(Fact(words("source"), (line(code(text)),)))
    counted = _is_counted(divergence)
    facts.append(
        _counted(divergence, words) if counted else Fact(words("values"), (_both(divergence, words),))
    )
    title = words("first" if divergence is not result.origin else "origin")
    return Section("first", line(title), tuple(facts))


def _both(divergence: Divergence, words: Words) -> Line:
    """Both values in one line, and how far they are apart."""
    alone = _is_alone(divergence)
    pairs = (("A", divergence.index_a, divergence.value_a), ("B", divergence.index_b, divergence.value_b))
    text = "   ".join(f"{run}{NO_BREAK}{exact(value)}" for run, index, value in pairs if index or not alone)
    return line(text) if alone else line(text, muted(words("aside", text=_apart(divergence, words))))


def origin(result: Result, words: Words) -> Section | None:
    """Where something other than rounding enters, if that is known and is another place."""
    divergence = result.origin
    if divergence is None or (result.first is not None and same_place(divergence, result.first)):
        return None
    return Section(
        "origin", line(words("origin")), (*_blocks(divergence, result, words), *_origins(result, words))
    )


def sources(result: Result, words: Words) -> Section | None:
    """Every op that parts ways on equal inputs, if that was asked for and there is one."""
    if not result.sources:
        return None
    rows = tuple(_one_source(divergence, words) for divergence in result.sources[:SOURCES_SHOWN])
    blocks: list[Grid | Paragraph] = [Grid(rows, flows=True)]
    if len(result.sources) > SOURCES_SHOWN:
        more = words.many("origins.more", len(result.sources) - SOURCES_SHOWN)
        blocks.append(Paragraph(line(muted(more))))
    return Section("sources", line(words.many("sources", len(result.sources))), tuple(blocks))


def _one_source(divergence: Divergence, words: Words) -> tuple[Line, ...]:
    module = module_name(divergence.module, words)
    name = module if divergence.function is None else f"{module}/{divergence.function}"
    error = "" if divergence.error is None else words("sources.error", n=short(divergence.error))
    gap = "" if divergence.max_abs is None else short(divergence.max_abs)
    return line(name), line(muted(divergence.source)), line(error), line(gap)


def _origins(result: Result, words: Words) -> list[Fact | Paragraph]:
    """All origins, where there are several, and in how many layers the first one is."""
    origins = result.origins
    if len(origins) < 2:
        return []
    first = origins[0]  # one line of a module may call a function twice
    alike = len({o.module for o in origins if (o.function, o.source) == (first.function, first.source)})
    blocks: list[Fact | Paragraph] = []
    if alike > 1:
        blocks.append(Paragraph(line(words.many("origins.layers", alike)), "→ "))
    shown = [_one_origin(divergence, words) for divergence in origins[:MODULES_SHOWN]]
    if len(origins) > MODULES_SHOWN:
        more = words.many("origins.more", len(origins) - MODULES_SHOWN)
        shown.append((line(muted(more)), line(), line()))
    return [*blocks, Fact(words("origins"), Grid(tuple(shown), flows=True))]


def _one_origin(divergence: Divergence, words: Words) -> tuple[Line, ...]:
    module = module_name(divergence.module, words)
    name = module if divergence.function is None else f"{module}/{divergence.function}"
    closes = ""
    if divergence.closes is not None:
        some = divergence.closes >= NOTICED
        share = f"{100 * divergence.closes:.3g}\u00a0%"
        closes = words("origins.closes", share=share) if some else words("origins.together")
    return line(name), line(muted(divergence.source)), line(closes)


def same_place(a: Divergence, b: Divergence) -> bool:
    """Whether two divergences are the same pass of one op, at one token."""
    return (a.op, a.source, a.call, a.sample, a.position) == (b.op, b.source, b.call, b.sample, b.position)


def place_and_values(
    divergence: Divergence, result: Result, words: Words, *, brief: bool = False
) -> list[Fact]:
    """An op with its place, its two values and how far they are apart: what is said of any divergence.

    Args:
        brief: both values in one line, and no more than the first.
    """
    op, source = Fact(words("op"), _op(divergence, words)), _source(divergence, words)
    place = Fact(words("where"), (_where(divergence, result, words),))
    if brief:
        return [op, *source, place, Fact(words("values"), (_both(divergence, words),))]
    blocks = [op, *source]
    if divergence.variable:
        blocks.append(Fact(words("variable"), (line(code(divergence.variable)),)))
    blocks += [
        place,
        Fact(words("values"), _values(divergence, alone=_is_alone(divergence))),
        Fact(words("apart"), (_distance(divergence, words),)),
        Fact(words("differing"), (_differing(divergence, words),)),
    ]
    return blocks


def _blocks(divergence: Divergence, result: Result, words: Words) -> list[Fact | Paragraph]:
    blocks: list[Fact | Paragraph] = [
        Fact(words("op"), _op(divergence, words)),
        *_source(divergence, words),
    ]
    if divergence.source_b:
        blocks.append(Fact(words("matched"), (line(changes.found_by(divergence, words)),)))
    if divergence.variable:
        blocks.append(Fact(words("variable"), (line(code(divergence.variable)),)))
    blocks.append(Fact(words("where"), (_where(divergence, result, words),)))
    if _is_counted(divergence):
        blocks.append(_counted(divergence, words))
    else:
        blocks.append(Fact(words("values"), _values(divergence, alone=_is_alone(divergence))))
    if not _is_alone(divergence) and not _is_counted(divergence):
        blocks.append(Fact(words("apart"), (_distance(divergence, words),)))
        blocks.append(Fact(words("differing"), (_differing(divergence, words),)))
    if divergence.largest is not None and _far_beyond(divergence.largest, divergence):
        most = divergence.largest
        blocks.append(Fact(words("largest"), (line(where(most.sample, most.position, most.token, words)),)))
        blocks.append(Fact(words("largest.values"), _values(most)))
    if (divergence.inputs or not divergence.between) and not _is_counted(divergence):
        blocks.append(Fact(words("inputs"), _inputs(divergence.inputs, words)))
    if divergence.arguments:
        blocks.append(Fact(words("arguments"), _arguments(divergence, words)))
    if divergence.between:
        blocks.append(Fact(words("between"), _between(divergence.between, words)))
    if divergence.note:
        blocks.append(Paragraph(line(words.sentence(divergence.note))))
    return blocks


def _op(divergence: Divergence, words: Words) -> tuple[Line, ...]:
    module = strong(module_name(divergence.module, words))
    if divergence.function is None:
        return (line(module),) if divergence.between else (line(module), line(muted(words("op.hidden"))))
    here = line(module, "/", strong(divergence.function))
    other = divergence.op_b not in ("", divergence.op)
    return (here, line("B ", divergence.op_b)) if other else (here,)


def _source(divergence: Divergence, words: Words) -> list[Fact]:
    """The file and line with their text; nothing where they are not known, as of a module of a recorded run."""
    if divergence.source_b:
        return [Fact(words("source"), changes.both_sources(divergence))]
    lines = [line(divergence.source)] if divergence.source not in UNKNOWN else []
    text = code_line(divergence.code)
    if text:
        lines.append(line(code(text)))
    return [Fact(words("source"), tuple(lines))] if lines else []


def _where(divergence: Divergence, result: Result, words: Words) -> Line:
    parts = [where(divergence.sample, divergence.position, divergence.token, words)]
    if _is_alone(divergence):
        parts = [words("where.alone", run="A" if divergence.index_a else "B")]
    if len(result.a.calls) > 1 or len(result.b.calls) > 1:
        parts.append(words("where.call", call=divergence.call))
    return line(words("comma").join(parts))


def _is_alone(divergence: Divergence) -> bool:
    """Whether one run alone has what is shown."""
    return not divergence.compared and bool(divergence.index_a or divergence.index_b)


def _is_counted(divergence: Divergence) -> bool:
    """Whether no value is known, only at how many coordinates they differ: of recorded traces."""
    return (
        not (divergence.index_a or divergence.index_b or divergence.inputs)
        and divergence.value_a is divergence.value_b is None
    )


def _counted(divergence: Divergence, words: Words) -> Fact:
    some = words("integers.coordinates", part=count(divergence.differing), whole=count(divergence.compared))
    return Fact(words("differing"), (line(some),))


def _far_beyond(most: Element, first: Divergence) -> bool:
    """Whether the first element that differs says little of how far apart the values are."""
    gaps: list[float] = []
    for element in (most, first):
        a, b = element.value_a, element.value_b
        if a is None or b is None:
            return False
        gaps.append(abs(b - a))
    return all(map(math.isfinite, gaps)) and gaps[0] >= FAR * gaps[1]


def _values(element: Divergence | Element, *, alone: bool = False) -> Grid:
    """Both values, one above the other; the digits that differ stand out. Where one run alone has one, that one."""
    texts = exact(element.value_a), exact(element.value_b)
    shared = common_prefix(*texts)
    rows = tuple(
        (line(run), line(muted(shape(index))), line(text[:shared], strong(text[shared:])))
        for run, index, text in zip("AB", (element.index_a, element.index_b), texts, strict=True)
        if index or not alone
    )
    return Grid(rows)


def _distance(divergence: Divergence, words: Words) -> Line:
    return line(_apart(divergence, words))


def _apart(divergence: Divergence, words: Words) -> str:
    parts: list[str] = []
    a, b = divergence.value_a, divergence.value_b
    if a is not None and b is not None:
        apart = abs(b - a)
        parts.append(size(apart) if math.isfinite(apart) else words("apart.nonfinite"))
    if divergence.ulps is not None and divergence.ulps < FEW:
        dtype = narrower(divergence.dtype_a or "", divergence.dtype_b or "")
        key = "values.ulps" if dtype else "values.ulps.plain"
        parts.append(words(key, n=ulps(divergence.ulps), dtype=dtype))
    return words("comma").join(parts) or "?"


def _differing(divergence: Divergence, words: Words) -> Line:
    part, whole = count(divergence.differing), count(divergence.compared)
    parts = [
        words(
            "differing.elements",
            part=part,
            whole=whole,
            share=share(divergence.differing, divergence.compared),
        )
    ]
    nowhere = (
        divergence.compared and max(divergence.nonfinite_a, divergence.nonfinite_b) == divergence.compared
    )
    if divergence.max_abs is not None and not nowhere:
        parts.append(words("differing.largest", gap=size(divergence.max_abs)))
    if divergence.max_rel is not None and not nowhere:
        parts.append(words("differing.relative", gap=short(divergence.max_rel)))
    if divergence.nonfinite_a or divergence.nonfinite_b:
        numbers = {"a": count(divergence.nonfinite_a), "b": count(divergence.nonfinite_b)}
        parts.append(words("differing.nonfinite", **numbers))
    return line(words("comma").join(parts))


def _inputs(inputs: tuple[InputComparison, ...], words: Words) -> tuple[Line, ...] | Grid:
    if not inputs:
        return (line(muted(words("inputs.none"))),)
    return Grid(tuple(one_input(item, words) for item in inputs), flows=True)


def one_input(item: InputComparison, words: Words) -> tuple[Line, ...]:
    """The name of an input, how it compares, and what else is known of it."""
    details: list[str | Span] = []
    if item.max_abs and math.isfinite(item.max_abs):
        details.append(words("differing.largest", gap=size(item.max_abs)))
    elif item.max_abs:
        details.append(words("differing.infinite"))
    if item.reason:
        details.append(words.phrase(item.reason))
    if item.parameter:
        details.append(code(item.parameter))
    details.append(muted(_kind(item)))
    spaced: list[str | Span] = []
    for detail in details:
        spaced += [detail, "  "]
    return line(code(item.name)), line(marked(item.status, words)), line(*spaced[:-1])


def _arguments(divergence: Divergence, words: Words) -> Grid:
    """What the op is called with besides tensors, where that differs."""
    rows = [
        (line(code(item.name)), line("A ", strong(item.value_a or words("arguments.default"))),
         line("B ", strong(item.value_b or words("arguments.default"))))
        for item in divergence.arguments
    ]  # fmt: skip
    return Grid(tuple(rows), flows=True)


def _kind(item: InputComparison) -> str:
    """Shape and dtype, of both runs where they are not the same."""
    return f"{shapes(item.shape_a, item.shape_b)} {either(item.dtype_a, item.dtype_b)}".strip()


def _conclusion(divergence: Divergence) -> str | None:
    """What the inputs of the first divergent op say of it: the key of a phrase."""
    if _is_alone(divergence):
        return None  # nothing that both runs have differs there
    if divergence.between:
        return None if divergence.note else "between.why"
    statuses = {item.status for item in divergence.inputs}
    if not statuses or divergence.function is None:
        return None
    if "differs" in statuses:
        cause = _cause([item for item in divergence.inputs if item.status == "differs"])
        return None if divergence.note and cause == "inputs.differ" else cause  # the note says more
    if "not compared" in statuses:
        return "inputs.unknown"
    if divergence.arguments and statuses == {"equal"}:
        return "inputs.scalars"
    return "inputs.equal" if statuses == {"equal"} else "inputs.arguments"


def _cause(differing: list[InputComparison]) -> str:
    if any(item.parameter for item in differing):
        return "inputs.parameter"
    floating = any("float" in (item.dtype_a or item.dtype_b or "float") for item in differing)
    if floating:
        return "inputs.differ"
    return "inputs.mask" if all(item.dtype_a == "bool" for item in differing) else "inputs.integer"


def _side(run: str, words: Words) -> str:
    return words("status.only in a" if run == "a" else "status.only in b") + words("comma") if run else ""


def _between(names: tuple[str, ...], words: Words) -> tuple[Line, ...]:
    """The ops by module, each function once with its number; of which run they are, where that is known."""
    modules: dict[tuple[str, str], Counter[str]] = {}
    for name in names:
        run, colon, place = name.partition(": ")
        module, _, function = (place if colon else name).rpartition("/")
        modules.setdefault((run if colon else "", module), Counter())[function] += 1
    lines = [
        line(
            muted(_side(run, words) + module_name(module, words) + words("colon")),
            ", ".join(map(_times, functions.items())),
        )
        for (run, module), functions in list(modules.items())[:MODULES_SHOWN]
    ]
    if len(modules) > MODULES_SHOWN:
        lines.append(line(muted(words.many("between.more", len(modules) - MODULES_SHOWN))))
    return tuple(lines)


def _times(item: tuple[str, int]) -> str:
    function, number = item
    return function if number == 1 else f"{count(number)}\u00a0×\u00a0{function}"
