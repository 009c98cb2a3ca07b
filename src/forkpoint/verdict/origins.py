"""The values at the places where a difference enters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from forkpoint.capture.recorder import CopiedCall
from forkpoint.capture.trace import Op
from forkpoint.explain.locate import (
    Located,
    Tokens,
    describe_choice,
    describe_values,
    fetch_op,
    fetch_ops,
)
from forkpoint.explain.session import Session
from forkpoint.probes.bench import benches
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.origin import Origin
from forkpoint.result import Divergence


def origins_shown(
    session: Session, first: Origin | None, tokens: Tokens, *, held: bool
) -> tuple[Divergence, ...]:
    """The values at the origins, each with those before it put right, in float64.

    Where decisions were held, they are those of the runs as they are, in the precision in which these were taken.
    """
    if first is None:
        return ()
    origins = (first, *first.others)
    described = (
        (origin, _described(session, origin.seen, a, b, tokens))
        for origin, (a, b) in zip(
            origins, (_native_calls if held else _exact_calls)(session, origins), strict=True
        )
    )
    return tuple(
        replace(shown, closes=None if math.isnan(origin.closes) else origin.closes)
        for origin, shown in described
        if shown is not None
    )


def _exact_calls(
    session: Session, origins: Sequence[Origin]
) -> Iterator[tuple[CopiedCall | None, CopiedCall | None]]:
    """The calls at origins of both runs, in float64."""
    for origin in origins:
        b, a = (bench.experiments for bench in benches(session, origin))
        ahead = [other.seen for other in origins if other.right.keys() == origin.right.keys()]
        seen = origin.seen
        yield (
            a.fetch((seen.a.op, seen.a.event), [(o.seen.a.op, o.seen.a.event) for o in origins]),
            b.fetch((seen.b.op, seen.b.event), [(other.b.op, other.b.event) for other in ahead]),
        )


def _native_calls(
    session: Session, origins: Sequence[Origin]
) -> Iterator[tuple[CopiedCall | None, CopiedCall | None]]:
    """The same as the runs made them."""
    calls_a, calls_b = (
        fetch_ops(traced, [(snapshot.op, snapshot.event) for snapshot in snapshots])
        for traced, snapshots in (
            (session.a, [origin.seen.a for origin in origins]),
            (session.b, [origin.seen.b for origin in origins]),
        )
    )
    return zip(calls_a, calls_b, strict=True)


def _described(
    session: Session, seen: Meeting, a: CopiedCall | None, b: CopiedCall | None, tokens: Tokens
) -> Divergence | None:
    if a is None or b is None:
        return None
    op = seen.a.op
    output = 0 if op.is_boundary else op.output
    if seen.absent:
        return describe_choice(session, op, output, a, b, tokens, seen.absent)
    shown = describe_values(session, op, output, a, b, tokens, beyond=seen.noise)
    shown = shown or describe_values(session, op, output, a, b, tokens)
    if shown is None or not op.is_boundary:
        return shown
    return replace(shown, between=_of_one_run_inside(session, op))


def _of_one_run_inside(session: Session, boundary: Op) -> tuple[str, ...]:
    """The ops in a module that one run alone has, as where it is of another class in each; none where no op of it was seen."""
    path = session.a.trace.plain(boundary.module)
    return tuple(
        f"{run}: {row.op.place}"
        for run, traced in (("a", session.a), ("b", session.b))
        for row in session.join.rows
        if row.status == f"only in {run}" and not row.op.is_boundary
        and f"{traced.trace.plain(row.op.module)}.".startswith(f"{path}." if path else "")
    )  # fmt: skip


def locate_meeting(session: Session, meeting: Meeting) -> Located | None:
    """The op of a meeting as it ran in native precision in both runs; None where it does not differ there."""
    a = fetch_op(session.a, meeting.a.op, meeting.a.event, look=session.look)
    b = fetch_op(session.b, meeting.b.op, meeting.b.event, look=session.look)
    row = next((r for r in session.join.rows if r.op.key == meeting.a.op.key), None)
    if a is None or b is None or row is None or row.difference is None:
        return None
    output = meeting.a.op.output if not meeting.a.op.is_boundary else 0
    divergence = describe_values(session, meeting.a.op, output, a, b, lambda _, __: None)
    return None if divergence is None else Located(row, divergence, a, b)
