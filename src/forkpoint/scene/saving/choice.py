"""Which op a scene is of: the divergence itself, or the nearest op that can be replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import SceneError
from forkpoint.explain.locate import Located, differing_rows, fetch, named_inputs
from forkpoint.explain.session import Session
from forkpoint.match import Difference, Joined
from forkpoint.scene.format.functions import function_path
from forkpoint.scene.replaying.replay import equal_elements
from forkpoint.scene.saving.alignment import share_input, share_output
from forkpoint.scene.saving.witness import look

LOOKED_AT = 16
"""Most ops that are tried where the divergence itself can't be replayed."""


@dataclass(frozen=True)
class Choice:
    """An op, its call in each run, and what to say of the choice."""

    row: Joined
    a: CopiedCall
    b: CopiedCall
    remark: str = ""


def choose(session: Session, located: Located) -> Choice:
    """The op of a divergence, or the nearest one that can be replayed.

    Raises:
        SceneError: there is none.
    """
    name, reason = located.divergence.op, _reason_against(located.a, located.b)
    if not reason:
        return Choice(located.row, located.a, located.b, _between(located))
    for choice in _unmatched(session):
        how = "both runs call this function, each at a place of its own"
        return replace(choice, remark=f"{name} can't be replayed ({reason}); {how}: {choice.row.op.name}")
    for choice in _later(session, located):
        how = f"this is the next op that differs, {choice.row.op.name}"
        return replace(choice, remark=f"{name} can't be replayed ({reason}); {how}")
    raise SceneError(
        f"{name} can't be replayed: {reason}",
        "a divergence with a torch function in it",
        "no other op that differs can be replayed either",
    )


def _reason_against(a: CopiedCall, b: CopiedCall) -> str:
    for call in (a, b):
        if call.func is None:
            return "it is a module whose inside was not watched"
        try:
            function_path(call.func)
        except SceneError as error:
            return error.given
    return ""


def _between(located: Located) -> str:
    if not located.divergence.between:
        return ""
    return (
        f"the runs part ways in ops that only one of them has, before {located.row.op.name}; "
        "its inputs differ already: this scene holds what it got"
    )


def _later(session: Session, located: Located) -> Iterator[Choice]:
    """Ops that differ after the divergence."""
    rows = differing_rows(session)
    start = next((i + 1 for i, row in enumerate(rows) if row is located.row), 0)
    for row in [row for row in rows[start:] if not row.op.is_boundary][:LOOKED_AT]:
        assert row.difference is not None
        [a] = fetch(session.a, [(row, row.difference.event_a)], look=look)
        [b] = fetch(session.b, [(row, row.difference.event_b)], look=look)
        if a is not None and b is not None and not _reason_against(a, b):
            yield Choice(row, a, b)


def _unmatched(session: Session) -> Iterator[Choice]:
    """A function that each run calls at a place of its own, with equal inputs and unequal outputs."""
    for mine, theirs in _same_function(session)[:LOOKED_AT]:
        [a] = fetch(session.a, [(mine, mine.order)], look=look)
        [b] = fetch(session.b, [(theirs, theirs.order)], look=look)
        if a is None or b is None or _reason_against(a, b):
            continue
        row = replace(
            mine,
            status="differs",
            first_b=theirs.first_b,
            difference=Difference(mine.order, theirs.order, -1),
        )
        try:
            left, right = share_output(session, row, a, b, 0).take(a.outputs[0].cpu(), b.outputs[0].cpu())
        except SceneError:
            continue
        if not bool(equal_elements(left, right).all()) and _equal_inputs(session, a, b):
            yield Choice(row, a, b)


def _same_function(session: Session) -> list[tuple[Joined, Joined]]:
    """Ops that only one run has each, the k-th call of a function with the k-th."""
    alone: dict[str, dict[str, list[Joined]]] = {"only in a": {}, "only in b": {}}
    for row in sorted(session.join.rows, key=lambda row: row.order):
        event = row.first_a or row.first_b
        if event is None or event.status != "digest" or not event.floating or row.status not in alone:
            continue
        if not row.op.is_boundary and not row.op.output:
            alone[row.status].setdefault(row.op.function, []).append(row)
    mine, theirs = alone["only in a"], alone["only in b"]
    pairs = [
        pair
        for function in mine.keys() & theirs.keys()
        if len(mine[function]) == len(theirs[function])
        for pair in zip(mine[function], theirs[function], strict=True)
    ]
    return sorted(pairs, key=lambda pair: pair[0].order)


def _equal_inputs(session: Session, a: CopiedCall, b: CopiedCall) -> bool:
    """Whether the floating-point inputs that both calls have are the same; parameters may differ."""
    mine, theirs = named_inputs(a), named_inputs(b)
    for name in mine.keys() & theirs.keys():
        left, right = mine[name], theirs[name]
        if not left.is_floating_point() or id(left) in a.owned:
            continue
        sharing = share_input(session, a, left, b, right)
        if not len(sharing) or not bool(equal_elements(*sharing.take(left.cpu(), right.cpu())).all()):
            return False
    return True
