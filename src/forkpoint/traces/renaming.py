"""Which module of one trace is which of the other's, where they have other paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from forkpoint.result import NameMatch
from forkpoint.traces.reading import TraceFolder, WeightDigests

SHOWN = 3
"""Modules that a note names."""


@dataclass(frozen=True)
class Renaming:
    """What a module of run B is called in run A, and how that was found.

    Attributes:
        how: `user`, `weights` (it has the same), `parts` (its parts are parts of the other, or the other way round).
    """

    path: str
    how: str


def renamed(
    one: TraceFolder, other: TraceFolder, rename: Mapping[str, str]
) -> tuple[dict[str, Renaming], list[str]]:
    """Give modules of run B the paths that they have in run A.

    First come the user's renamings, then modules that have the same weights under other paths, then those that hold such
    modules, and what else these hold.

    Returns:
        By the path that run A has, how it was found, for those that run B calls otherwise; and notes.
    """
    renamings: dict[str, Renaming] = {}
    notes: list[str] = []
    if rename:
        renamings |= _move(other, lambda path: _by_hand(path, rename), "user")
    paths = _by_weights(one, other)
    parts = _by_parts(one, other, paths)
    for how, of, said in (("weights", paths, "weights"), ("parts", parts, "parts")):
        if of:
            notes.append(f"modules matched by their {said}: {_listed(of)}")
            renamings |= {mine: Renaming(theirs, how) for theirs, mine in of.items()}
    if paths or parts:
        both = {**paths, **parts}
        _move(other, lambda path: both.get(path, path), "")
    return renamings, notes


def matched_modules(renamings: Mapping[str, Renaming]) -> tuple[NameMatch, ...]:
    """The same as records of a result."""
    return tuple(NameMatch("module", (mine,), (one.path,), one.how) for mine, one in renamings.items())


def _listed(renamings: Mapping[str, str]) -> str:
    listed = ", ".join(f"{theirs} = {mine}" for theirs, mine in list(renamings.items())[:SHOWN])
    return listed + (f", … (+{len(renamings) - SHOWN})" if len(renamings) > SHOWN else "")


def _by_hand(path: str, rename: Mapping[str, str]) -> str:
    for theirs in sorted(rename, key=len, reverse=True):
        if path == theirs or path.startswith(f"{theirs}." if theirs else ""):
            rest = path[len(theirs) :].lstrip(".")
            return ".".join(part for part in (rename[theirs], rest) if part)
    return path


def _move(recorded: TraceFolder, to: Callable[[str], str], how: str) -> dict[str, Renaming]:
    """Rename the modules of a trace, and its weights with them; returns by the new path what it was."""
    moved = {
        to(op.module): Renaming(op.module, how) for op in recorded.trace.ops if to(op.module) != op.module
    }
    recorded.trace.rename(lambda op: replace(op, module=to(op.module)))
    weights: dict[str, WeightDigests] = {}
    for name, weight in recorded.weights.items():
        module, _, last = name.rpartition(".")
        weights[".".join(part for part in (to(module), last) if part)] = weight
    recorded.weights = weights
    return moved


# ---------------------------------------------------------------------- modules by their weights


def _by_weights(one: TraceFolder, other: TraceFolder) -> dict[str, str]:
    """Modules of run B whose own weights are those of one module of run A that has another path; none where it is not clear.

    Weights that are the same number all over, as those of a norm that was not trained, are no sign of a module.
    """
    mine, theirs = _weights(one, other), _weights(other, one)
    if mine.keys() & theirs.keys():  # names meet: what differs then is not a port
        lacking = {p: w for p, w in theirs.items() if p not in mine}
        free = {p: w for p, w in mine.items() if p not in theirs}
    else:
        lacking, free = theirs, mine
    where: dict[Hashable, list[str]] = {}
    for path, weights in free.items():
        where.setdefault(weights, []).append(path)
    often = Counter(lacking.values())
    told = {name.rpartition(".")[0] for name, weight in other.weights.items() if _is_telling(weight)}
    return {
        path: where[weights][0]
        for path, weights in lacking.items()
        if path in told and often[weights] == 1 and len(where.get(weights, ())) == 1
    }


def _is_telling(weight: WeightDigests) -> bool:
    """Whether another parameter hardly has the same values by chance: more than one number, not all alike."""
    if weight.kind != "parameter" or weight.digests is None or prod(weight.shape) < 2:
        return False
    return len(weight.digests) < 2 or len(np.unique(weight.digests)) > 1


def _weights(recorded: TraceFolder, other: TraceFolder) -> dict[str, Hashable]:
    """By path, the digests of a module's own parameters, whatever they are called; a matrix is the same transposed.

    Args:
        other: the run they are held against: where either has no digests of columns, those of rows must do.
    """
    turned = all(
        w.columns is not None for r in (recorded, other) for w in r.weights.values() if _is_matrix(w)
    )
    own: dict[str, list[Hashable]] = {}
    for name, weight in recorded.weights.items():
        if weight.kind == "parameter" and weight.digests is not None:
            digests = [weight.digests.tobytes()]
            if turned and weight.columns is not None:
                digests.append(weight.columns.tobytes())
            own.setdefault(name.rpartition(".")[0], []).append(frozenset(digests))
    return {path: frozenset(Counter(digests).items()) for path, digests in own.items()}


def _is_matrix(weight: WeightDigests) -> bool:
    return weight.kind == "parameter" and weight.digests is not None and len(weight.shape) == 2


# ---------------------------------------------------------------------- modules by their parts


def _by_parts(one: TraceFolder, other: TraceFolder, by_weights: Mapping[str, str]) -> dict[str, str]:
    """Modules of run B that hold what one module of run A holds, and what else is held by such modules in both runs.

    Args:
        by_weights: modules that were matched by their weights, by their paths in run B.
    """
    if not by_weights:
        return {}
    mine, theirs = _paths(one), _paths(other)
    weights_a, weights_b = _weights(one, other), _weights(other, one)
    to = {path: path for path in theirs if path in mine and path not in by_weights} | dict(by_weights)
    lacking = [path for path in theirs if path not in to]
    free = {path: None for path in mine if path not in {*to.values()}}
    matched: dict[str, str] = {}

    def settle(theirs_path: str, path: str) -> None:
        matched[theirs_path] = to[theirs_path] = path
        free.pop(path)

    for path in sorted(lacking, key=_depth, reverse=True):
        votes = Counter(_parent(to[child]) for child in _children(theirs, path) if child in to)
        ranked = [(p, n) for p, n in votes.most_common() if p in free]
        if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
            settle(path, ranked[0][0])
    for path in sorted(theirs, key=_depth):
        if path not in matched:
            continue
        left_a = [child for child in _children(mine, matched[path]) if child in free]
        left_b = [child for child in _children(theirs, path) if child not in to]
        by_name = {_last(child): child for child in left_a}
        for child in [c for c in left_b if _last(c) in by_name]:
            settle(child, by_name[_last(child)])
        between = _between(
            _children(mine, matched[path]), {child: child for child in mine if child not in free}
        )
        for place, left_b in _between(_children(theirs, path), to).items():
            left_a = between.get(place, [])
            if [weights_a.get(a) for a in left_a] == [weights_b.get(b) for b in left_b]:
                for a, b in zip(left_a, left_b, strict=True):
                    settle(b, a)
    return matched


def _between(children: Iterable[str], matched: Mapping[str, str]) -> dict[str, list[str]]:
    """What is not known of a module's children, by the known one that runs before it.

    >>> _between(["a.up", "a.act", "a.down"], {"a.up": "b.up", "a.down": "b.down"})
    {'b.up': ['a.act']}
    """
    unmatched: dict[str, list[str]] = {}
    before = ""
    for child in children:
        if child in matched:
            before = matched[child]
        else:
            unmatched.setdefault(before, []).append(child)
    return unmatched


def _paths(recorded: TraceFolder) -> list[str]:
    """The modules that ran, and those around them, in the order in which they first did."""
    trace = recorded.trace
    numbers = sorted(range(len(trace.ops)), key=trace.first_of)
    paths: dict[str, None] = {}
    for number in numbers:
        path = trace.ops[number].module
        paths[path] = None
        while path:
            path = _parent(path)
            paths[path] = None
    return [*paths]


def _children(paths: Iterable[str], path: str) -> list[str]:
    return [child for child in paths if child and child != path and _parent(child) == path]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0
