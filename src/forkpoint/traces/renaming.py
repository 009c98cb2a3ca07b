"""Which op of one trace is which of the other's, where lines have moved or modules were renamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from forkpoint.capture.sites import Site
from forkpoint.capture.trace import Op
from forkpoint.traces.reading import Recorded, Weight
from forkpoint.traces.stored import StoredTrace


def renamed(one: Recorded, other: Recorded, rename: Mapping[str, str]) -> list[str]:
    """Give ops of run B the names that run A has for them; returns notes that say how they were found.

    First come the user's renamings, then modules that have the same weights under other paths, then the ops of each
    module that both runs have: those that no place in the source brings together, in their order, by function and text.
    """
    notes: list[str] = []
    if rename:
        _move(other, lambda path: _by_hand(path, rename))
    found = _by_weights(one, other)
    if found:
        _move(other, lambda path: _by_hand(path, found))
        listed = ", ".join(f"{theirs} is {mine}" for theirs, mine in list(found.items())[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        notes.append(f"modules matched by their weights: {listed}{more}")
    moved = _by_place(one.trace, other.trace)
    if moved:
        notes.append(f"{moved} ops whose lines have moved were matched by their order and function")
    return notes


def _by_hand(path: str, rename: Mapping[str, str]) -> str:
    for theirs in sorted(rename, key=len, reverse=True):
        if path == theirs or path.startswith(f"{theirs}." if theirs else ""):
            rest = path[len(theirs) :].lstrip(".")
            return ".".join(part for part in (rename[theirs], rest) if part)
    return path


def _move(recorded: Recorded, to: Callable[[str], str]) -> None:
    """Rename the modules of a trace, and its weights with them."""
    recorded.trace.rename(lambda op: replace(op, module=to(op.module)))
    weights: dict[str, Weight] = {}
    for name, weight in recorded.weights.items():
        module, _, last = name.rpartition(".")
        weights[".".join(part for part in (to(module), last) if part)] = weight
    recorded.weights = weights


# ---------------------------------------------------------------------- modules by their weights


def _by_weights(one: Recorded, other: Recorded) -> dict[str, str]:
    """Modules of run B whose own weights are those of one module of run A that has another path; none where it is not clear."""
    mine, theirs = _modules(one), _modules(other)
    if mine.keys() & theirs.keys():  # names meet: what differs then is not a port
        lacking = {p: w for p, w in theirs.items() if p not in mine}
        free = {p: w for p, w in mine.items() if p not in theirs}
    else:
        lacking, free = theirs, mine
    where: dict[Hashable, list[str]] = {}
    for path, weights in free.items():
        where.setdefault(weights, []).append(path)
    often = Counter(lacking.values())
    return {
        path: where[weights][0]
        for path, weights in lacking.items()
        if often[weights] == 1 and len(where.get(weights, ())) == 1
    }


def _modules(recorded: Recorded) -> dict[str, Hashable]:
    """By path, the digests of a module's own parameters, whatever they are called."""
    own: dict[str, list[Hashable]] = {}
    for name, weight in recorded.weights.items():
        if weight.kind == "parameter" and weight.digests is not None:
            own.setdefault(name.rpartition(".")[0], []).append(weight.digests.tobytes())
    return {path: frozenset(Counter(digests).items()) for path, digests in own.items()}


# ---------------------------------------------------------------------- ops whose lines have moved


def _by_place(one: StoredTrace, other: StoredTrace) -> int:
    """Give ops of `other` the places that `one` has for them, module by module; returns how many."""
    mine, theirs = _per_module(one), _per_module(other)
    sites: dict[int, Site] = {}
    for module, ops in theirs.items():
        known = mine.get(module, [])
        keys_a, keys_b = {op.key for op in known}, {op.key for op in ops}
        if keys_a == keys_b:
            continue
        matcher = SequenceMatcher(
            None, [_text(op) for op in known], [_text(op) for op in ops], autojunk=False
        )
        for tag, a0, a1, b0, b1 in matcher.get_opcodes():
            if tag == "equal":
                pairs = zip(known[a0:a1], ops[b0:b1], strict=True)
            else:
                pairs = _by_function(known[a0:a1], ops[b0:b1])
            sites.update({id(b): a.site for a, b in pairs if a.site.chain != b.site.chain})
    if sites:
        other.rename(lambda op: replace(op, site=sites[id(op)]) if id(op) in sites else op)
    return len(sites)


def _by_function(a: Sequence[Op], b: Sequence[Op]) -> list[tuple[Op, Op]]:
    """Of a stretch that reads otherwise, those ops that are the same functions in the same order."""
    matcher = SequenceMatcher(None, [_function(op) for op in a], [_function(op) for op in b], autojunk=False)
    return [
        (a[block.a + i], b[block.b + i]) for block in matcher.get_matching_blocks() for i in range(block.size)
    ]


def _function(op: Op) -> Hashable:
    return op.function, op.output


def _text(op: Op) -> Hashable:
    return op.function, op.output, op.site.code, op.site.variable


def _per_module(trace: StoredTrace) -> dict[str, list[Op]]:
    """The ops of each module, but for what goes in and comes out, in the order in which they first ran."""
    found: dict[str, list[Op]] = {}
    for number in sorted(range(len(trace.ops)), key=trace.first_of):
        op = trace.ops[number]
        if not op.is_boundary and trace.first_of(number) < len(trace):
            found.setdefault(op.module, []).append(op)
    return found
