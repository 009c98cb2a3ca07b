"""The packing probe: does one packed sample's content move another's token at the origin?"""

from __future__ import annotations

import numpy as np

from forkpoint.explain.session import Session
from forkpoint.probes.bench import Bench, benches, shown_in_content
from forkpoint.probes.origin import Origin
from forkpoint.result import ProbeResult


def reads_packed(session: Session, origin: Origin) -> ProbeResult | None:
    """Show that a sample's value at the origin moves with the content of another in its row; None where it does not."""
    at = shown_in_content(session, origin)
    of = session.shared.coordinate
    differing = frozenset(
        n for n in (() if at is None else at.differing) if None not in of(n)
    )  # a loss has all samples
    if at is None or not differing or at.pairs.by_sample:
        return None
    for bench in benches(session, origin, at):
        last = frozenset(
            sorted(differing)[-1:]
        )  # of a row's samples the last can see the others, in a causal model
        others = _row_mates(bench, last)
        moved = bench.move(others) if others.any() else None
        mine = bench.samples(last)
        if moved is not None and bench.samples(moved.numbers & bench.tokens_of(mine)):
            text = (
                f"in run {bench.side.upper()} other content in the samples packed beside sample {next(iter(mine))} moves "
                f"its value at the origin by {moved.by:.2g}"
            )
            return ProbeResult("packing", "coupled", moved.by, text)
    return None


def _row_mates(bench: Bench, numbers: frozenset[int]) -> np.ndarray:
    """Ids of tokens of other samples in the row of the sample that shared numbers belong to."""
    samples = bench.samples(numbers)
    own = {x if bench.side == "a" else y for x, y in bench.session.pairing.pairs if x in samples}
    tokens = bench.traced.trace.table.tokens
    foreign = np.zeros(len(bench.numbers), dtype=bool)
    for item, token in enumerate(tokens):
        foreign[item] = token is not None and token[1] not in own
    return bench.row_mates(numbers) & foreign & ~bench.earlier
