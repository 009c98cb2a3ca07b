"""What is said of two runs whose ops are called otherwise: which of their values are the same, and where they part."""

from __future__ import annotations

from dataclasses import dataclass

from forkpoint.explain.session import Session
from forkpoint.ports.mapping import Mapping, mapping
from forkpoint.ports.parting import Parting, part, prints_of
from forkpoint.ports.trials import PortTrials
from forkpoint.result import Divergence

FEW = 0.5
"""Below this share of run A's ops that run B has, too, names don't meet."""


@dataclass(frozen=True)
class Port:
    """What there is to say of a port.

    Attributes:
        origin: where its values part from the reference's; None where they don't.
        notes: how many are the same, and which modules are which.
    """

    origin: Divergence | None
    notes: tuple[str, ...]


def is_port(session: Session) -> bool:
    """Whether the runs are of two models most of whose ops have other names, or other places in the source."""
    if session.a.run.modules is None or session.b.run.modules is None:
        return False
    if session.a.run.modules is session.b.run.modules:
        return False
    mine = [r for r in session.join.rows if r.floating and not r.op.is_boundary and r.status != "only in b"]
    alone = sum(r.status == "only in a" for r in mine)
    return bool(mine) and len(mine) - alone < FEW * len(mine)


def explain_port(session: Session, modules: Mapping | None = None, *, parts: bool = True) -> Port:
    """Make both runs in float64 and find where the values of run A part from those of run B.

    Args:
        session: the runs.
        modules: which module is which, if that was looked for already.
        parts: whether they may part; False for runs that are known to agree, of which only the names are told apart.
    """
    session.progress.begin("comparing the values of a port")
    if modules is None and session.a.run.modules is not None and session.b.run.modules is not None:
        modules = mapping(session.a.run.modules, session.b.run.modules)
    notes: list[str] = []
    if modules is not None and modules.modules:
        left = len(modules.unmatched_mine)
        notes.append(
            f"names do not meet: {len(modules.matches)} pairs of parameters, or of parts of them, were found by their values; "
            f"{left} parameters of run A have no counterpart (fp.mapping shows them)"
        )
    if not parts:
        return Port(None, tuple(notes))
    parting = part(*prints_of(session), PortTrials(session), modules)
    if parting is None:
        notes.append(
            "in float64 the last value of run A is that of run B to within one part in a thousand million"
        )
        return Port(None, tuple(notes))
    notes.append(f"{parting.met} of {parting.total} values of run A are values of run B, too")
    return Port(_divergence(session, parting, modules), tuple(notes))


def _divergence(session: Session, parting: Parting, modules: Mapping | None) -> Divergence:
    op, event = parting.op, parting.event
    sample, position = (None, None) if parting.first is None else session.shared.coordinate(parting.first)
    return Divergence(
        op=op.name, module=op.module, function=None if op.is_boundary else op.function,
        source="?" if op.is_boundary else op.site.short, code="" if op.is_boundary else op.site.code,
        variable=None if op.is_boundary else op.site.variable,
        sample=None if sample is None else session.a.run.layout.name(sample), position=position, token=None,
        index_a=(), index_b=(), value_a=None, value_b=None, ulps=None, max_abs=None, max_rel=None,
        differing=parting.differing, compared=parting.tokens, call=event.call,
        dtype_a=event.dtype, shape_a=event.shape, note=_note(parting, modules),
    )  # fmt: skip


def _note(parting: Parting, modules: Mapping | None) -> str:
    if parting.rounded:
        return "it and all that follows are apart from run B's values by no more than tables rounded to float32 make"
    if parting.partner is not None and parting.misplaced:
        return f"run B has this value, too, but not here: to the same weights it gives what {parting.partner.place} makes there"
    if parting.partner is not None and parting.lacking:
        return f"run B has this value, too, and goes on from it: there, {parting.partner.place} makes another of it"
    if parting.unclear is not None:
        return f"run B has neither this value nor those that it is made of here, from {parting.unclear.place} on: any of these may be at fault"
    if parting.partner is not None and not parting.alike:
        return f"what goes into it, run B has, too; this value it has not: the nearest of its own there is made by {parting.partner.place}"
    if parting.partner is not None:
        return f"what goes into it, run B has, too; this value it has not: of the same, {parting.partner.place} makes another there"
    other = None if modules is None else modules.counterpart(parting.op.module)
    if other:
        return f"what goes into it, run B has, too; this value it has not: the module there is {other}"
    return "what goes into it, run B has, too; this value it has not"
