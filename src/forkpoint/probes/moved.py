"""Which decisions differ, op by op: within rounding of their threshold, or moved on the same values.

A decision that came out otherwise in two runs has its threshold between what it was taken on in the one and in the
other. So how far these are apart bounds how far either was from the threshold, whatever the op: that is measured where
run A's values are put in place of run B's. It is rounding if in float64, with the decisions before it held, they are
not apart beyond noise. A decision that comes out otherwise on run A's values was moved by what run A lacks, or is taken
by another rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.match import Shared
from forkpoint.match.align import gap, pair_elements
from forkpoint.match.joined import Joined
from forkpoint.probes.deciding import STEPS, Decision, Key, is_discrete
from forkpoint.support.memory import Shelved, load

_TOLD = 3
"""Ops that are named, the first ones."""


def told(session: Session, forced: Sequence[Decision], beyond: Mapping[Key, float]) -> tuple[int, str]:
    """How many decisions come out otherwise on the same values, and the ops whose decisions differ, in words.

    Args:
        forced: run B's decisions, taken on run A's values where both runs have them.
        beyond: by op, how far apart what it decides on is in float64, where that is more than noise.
    """
    otherwise, apart = _otherwise(forced, session.shared), _apart(forced)
    plain = session.a.trace.plain
    texts: list[str] = []
    for row in session.join.rows:
        key = plain(row.op.module), row.op.function, row.op.site.chain
        if key in apart and not row.floating and (row.differing or key in otherwise):
            texts.append(_text(row, len(otherwise.get(key, ())), apart[key], beyond.get(key)))
    more = [f"and at {len(texts) - _TOLD} more ops"] if len(texts) > _TOLD else []
    return sum(map(len, otherwise.values())), "; ".join([*islice(dict.fromkeys(texts), _TOLD), *more])


def _text(row: Joined, moved: int, apart: float, beyond: float | None) -> str:
    rest = max(row.differing - moved, 0)
    parts = [f"{moved:,} of {row.compared:,} come out otherwise on the same values"] if moved else []
    if rest:
        of = f"{rest:,} more" if moved else f"{rest:,} of {row.compared:,}"
        why = f"lie within rounding of their threshold, by at most {apart:.2g}"
        if beyond is not None:
            why = f"are taken on other values, {beyond:.2g} apart in float64, too"
        parts.append(f"{of} {why}")
    return f"at {row.op.place} " + " and ".join(parts)


def _apart(forced: Sequence[Decision]) -> dict[Key, float]:
    """By op, how far what its decisions were taken on was from the other run's, at most."""
    apart: dict[Key, float] = defaultdict(float)
    for decision in forced:
        for link in decision.links:
            apart[decision.key] = max(apart[decision.key], link.apart)
    return apart


def _otherwise(forced: Sequence[Decision], shared: Shared) -> dict[Key, set[tuple[object, int]]]:
    """By op, the coordinates (and passes) at which a decision comes out otherwise than in the other run."""
    otherwise: dict[Key, set[tuple[object, int]]] = defaultdict(set)
    for decision in forced:
        for other in {id(link.other): link.other for link in decision.links}.values():
            for mine, theirs, label, label_other in zip(
                _tensors(decision), _tensors(other), decision.labels, other.labels, strict=False
            ):
                if (
                    label is None
                    or label_other is None
                    or not (is_discrete(mine) or decision.key[1] in STEPS)
                ):
                    continue
                pairs = pair_elements(theirs, label_other, mine, label, shared)
                if len(pairs):
                    differing = gap(theirs, mine, pairs).largest > 0
                    otherwise[decision.key] |= {
                        (other.place, n) for n in pairs.coordinates[differing].tolist()
                    }
    return {key: places for key, places in otherwise.items() if places}


def _tensors(decision: Decision) -> list[Tensor]:
    return [load(leaf) for leaf in decision.leaves if isinstance(leaf, (Tensor, Shelved))]
