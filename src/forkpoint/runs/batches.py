"""What nothing in the inputs of one run says, and the other run does: which of its tokens its own are.

Micro-batches are several calls that hold other samples each, not ones that go on with the same rows: the other run has
each row of each call as a row of its own, and no row that goes on from call to call. What goes in with a cache that was
given goes on where that ends, if the other run has the same tokens there.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import torch

from forkpoint.errors import LayoutError
from forkpoint.runs.layout import Coordinates, Layout
from forkpoint.runs.pairing import Content, Held, Pairing, agree, pair_samples, read_content
from forkpoint.runs.run import Run

_BY_HAND = "if they hold other samples, say so by hand: fp.Layout, with the samples numbered over all calls"


def paired(a: Run, b: Run) -> tuple[Run, Run, Pairing, tuple[str, ...]]:
    """Both runs, with layouts that tell their micro-batches apart, which of their samples belong together, and remarks.

    Raises:
        LayoutError: nothing pairs.
    """
    a, b = _after_caches(a, b)
    apart_a, apart_b = _apart(a), _apart(b)
    notes: list[str] = []
    if _are_rows_of(apart_a, apart_b) and not _go_on(a, b):
        for name, before, run in (("A", a, apart_a), ("B", b, apart_b)):
            if run is not before:
                notes.append(
                    f"the calls of run {name} hold other samples each: each of their rows is one of the other run's"
                )
        a, b = apart_a, apart_b
    elif _end_alike(apart_a, apart_b) and not _any_agrees(a, b):
        notes.append("calls hold other samples each: the last call of both runs holds the same")
        a, b = apart_a, apart_b
    content_a, content_b = read_content(a.layout, a.calls), read_content(b.layout, b.calls)
    try:
        pairing = pair_samples(a.layout, b.layout, content_a, content_b)
    except LayoutError as error:
        if apart_a is a and apart_b is b:
            raise
        hint = f"calls are read as going on with the same rows; {_BY_HAND}"
        raise LayoutError(error.given, error.expected, hint) from None
    for name, run, apart, mine, others in (
        ("A", a, apart_a, content_a, content_b),
        ("B", b, apart_b, content_b, content_a),
    ):
        if run is not apart and any(not _agrees(one, others) for one in mine.values()):
            notes.append(f"the calls of run {name} are read as going on with the same rows; {_BY_HAND}")
    return a, b, pairing, tuple(notes)


def _after_caches(a: Run, b: Run) -> tuple[Run, Run]:
    """Both runs with positions that go on from the caches they were given, if the tokens are each other's then."""
    on_a, on_b = _after_cache(a), _after_cache(b)
    if on_a is a and on_b is b:
        return a, b
    return (on_a, on_b) if _any_agrees(on_a, on_b) else (a, b)


def _after_cache(run: Run) -> Run:
    """The run with positions that go on from the cache that it was given; itself where its layout was given, or no cache."""
    if not run.layout_is_read:
        return run
    layout = Layout.read(run.calls, after_cache=True)
    if layout.content == run.layout.content:
        return run
    continued = copy.copy(run)
    continued.layout = layout
    return continued


def _apart(run: Run) -> Run:
    """The run with the rows of each call as samples of their own; itself where its layout was given, or it has one call."""
    if len(run.calls) == 1 or not run.layout_is_read:
        return run
    entries: list[Mapping[str, Coordinates]] = []
    first = 0
    for call in run.calls:
        entry = {stream: _from(c, first) for stream, c in Layout.read([call]).calls[0].items()}
        entries.append(entry)
        first = max([first, *(int(c.sample.max()) + 1 for c in entry.values() if c.sample.numel())])
    apart = copy.copy(run)
    apart.layout = Layout(entries)
    return apart


def _from(coordinates: Coordinates, first: int) -> Coordinates:
    """The same coordinates, of samples that are numbered from another one on."""
    sample = coordinates.sample
    return Coordinates(torch.where(sample >= 0, sample + first, sample), coordinates.position)


def _are_rows_of(a: Run, b: Run) -> bool:
    """Whether each sample of a run of several calls is one of the other run's."""
    one, other = (Counter(read_content(run.layout, run.calls).values()) for run in (a, b))
    several_a, several_b = len(a.calls) > 1, len(b.calls) > 1
    unknown = () in one or () in other
    if unknown or not (several_a or several_b):
        return False
    return (not several_a or one <= other) and (not several_b or other <= one)


def _end_alike(a: Run, b: Run) -> bool:
    """Whether the last calls of two runs, one at least of several calls, hold the same samples, and none of them an earlier one."""
    if len(a.calls) == len(b.calls) == 1:
        return False
    ends: list[Counter[Held]] = []
    for run in (a, b):
        content = read_content(run.layout, run.calls)
        last = {int(s) for c in run.layout.calls[-1].values() for s in c.sample[c.valid].unique()}
        if any(
            int(s) in last
            for entry in run.layout.calls[:-1]
            for c in entry.values()
            for s in c.sample.unique()
        ):
            return False
        ends.append(Counter(content[sample] for sample in last))
    return () not in ends[0] and bool(ends[0]) and ends[0] == ends[1]


def _any_agrees(a: Run, b: Run) -> bool:
    """Whether a sample of a run, as it was read, agrees with one of the other's."""
    others = read_content(b.layout, b.calls)
    return any(_agrees(one, others) for one in read_content(a.layout, a.calls).values())


def _go_on(a: Run, b: Run) -> bool:
    """Whether a run has a sample that goes on from call to call in the other run, or is one of its samples as it was read."""
    contents = [read_content(run.layout, run.calls) for run in (a, b)]
    several = [_of_several_calls(run, content) for run, content in zip((a, b), contents, strict=True)]
    return any(one in contents[1].values() for one in several[0]) or any(
        one in contents[0].values() for one in several[1]
    )


def _of_several_calls(run: Run, content: Content) -> list[Held]:
    """What those samples hold that have tokens in several calls."""
    seen = Counter(
        sample
        for entry in run.layout.calls
        for sample in {int(s) for c in entry.values() for s in c.sample[c.valid].unique()}
    )
    return [content[sample] for sample, calls in seen.items() if calls > 1]


def _agrees(one: Held, others: Content) -> bool:
    return any(agree(one, other) for other in others.values())
