"""Two runs, traced and joined, and the op at which they part ways: what a scene is made from."""

from __future__ import annotations

from forkpoint.layout import pair_samples, read_content
from forkpoint.locate import Located, locate
from forkpoint.match import Join, Shared
from forkpoint.run import Run
from forkpoint.session import Session, trace_faithfully


def join(a: Run, b: Run) -> tuple[Session, Located | None]:
    pairing = pair_samples(
        a.layout, b.layout, read_content(a.layout, a.calls), read_content(b.layout, b.calls)
    )
    traced_a, traced_b = trace_faithfully(a), trace_faithfully(b)
    shared = Shared(traced_a.trace.table, traced_b.trace.table, pairing)
    session = Session(traced_a, traced_b, shared, Join(traced_a.trace, traced_b.trace, shared))
    return session, locate(session, lambda _sample, _position: None)
