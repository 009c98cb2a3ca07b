"""Which op of one trace is which of the other's: two versions of one source rarely have a line at one number.

| how | an op of run B is the one of run A that |
| --- | --- |
| `place` | the same line of the same function calls, at the same number |
| `text` | a line of the same text calls, in the same order among those of the module |
| `function` | is the same function between the same neighbours, though its line reads otherwise |
| `structure` | is another function that stands between the same neighbours and makes a value of the same form |
| `value` | made the same value at all tokens, wherever it stands |

Whatever a line says, two ops that made other values are no match by `function` or `structure` where what follows is the
same in both runs again: then the versions go other ways to one value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from forkpoint.capture.sites import Site
from forkpoint.capture.trace import Op
from forkpoint.match import Shared
from forkpoint.traces.signatures import Signatures
from forkpoint.traces.stored import StoredTrace

PLACE, TEXT, FUNCTION, STRUCTURE, VALUE = "place", "text", "function", "structure", "value"

NOTES = {
    TEXT: "{n} ops were matched by the text of their lines, which have moved",
    FUNCTION: "{n} ops were matched by function and order: their lines read otherwise",
    STRUCTURE: "{n} ops were matched by the ops around them: they call another function",
    VALUE: "{n} ops were matched by their values",
}


@dataclass
class Matches:
    """The ops that both runs have.

    Attributes:
        pairs: by the number of an op of run B, that of run A.
        how: by the number of an op of run B, how it was found.
        recorded: the ops of run B as they were recorded, by number.
    """

    signatures_a: Signatures
    signatures_b: Signatures
    recorded: list[Op]
    pairs: dict[int, int] = field(default_factory=dict[int, int])
    how: dict[int, str] = field(default_factory=dict[int, str])

    def add(self, pairs: Iterable[tuple[int, int]], how: str) -> None:
        """Ops of A and of B that are each other's counterparts."""
        for a, b in pairs:
            self.pairs[b], self.how[b] = a, how

    def equal(self, a: int, b: int) -> bool | None:
        """Whether two ops made the same values; None where that can't be said."""
        mine, theirs = self.signatures_a.of(a), self.signatures_b.of(b)
        return None if mine is None or theirs is None else mine == theirs

    def notes(self) -> list[str]:
        """How many were found in which way, for a report."""
        numbers = Counter(self.how.values())
        return [text.format(n=numbers[how]) for how, text in NOTES.items() if numbers[how]]


def match(one: StoredTrace, other: StoredTrace, recorded: list[Op], shared: Shared) -> Matches:
    """Give ops of run B the names and places that run A has for them; to those that it lacks, places that it has not.

    Args:
        one, other: the traces, with modules of the same paths.
        recorded: the ops of `other` as they were recorded.
        shared: the numbering of their coordinates.
    """
    matches = Matches(Signatures(one, shared.a), Signatures(other, shared.b), recorded)
    mine, theirs = _Ops(one), _Ops(other)
    for module, ops in theirs.by_module.items():
        _Module(matches, mine, theirs, module).match(mine.by_module.get(module, []), ops)
    matches.add(
        ((mine.by_key[key], number) for key, number in theirs.boundaries.items() if key in mine.by_key), PLACE
    )
    matched_a = {*matches.pairs.values()}
    left = [n for n in mine.all if n not in matched_a], [n for n in theirs.all if n not in matches.pairs]
    matches.add(_by_value(matches, mine, theirs, *left), VALUE)
    for number, op in enumerate(theirs.ops):
        first = theirs.by_key.get(op.key)
        if first in matches.pairs:
            matches.add([(matches.pairs[first], number)], matches.how[first])
    _rename(other, matches, mine, theirs)
    return matches


class _Ops:
    """The ops of a trace that ran, each once, in the order in which they first did."""

    def __init__(self, trace: StoredTrace) -> None:
        self.trace, self.ops = trace, trace.ops
        self.by_key: dict[Hashable, int] = {}
        self.by_module: dict[str, list[int]] = {}
        self.boundaries: dict[Hashable, int] = {}
        for number in sorted(range(len(self.ops)), key=trace.first_of):
            op = self.ops[number]
            if trace.first_of(number) >= len(trace) or op.key in self.by_key:
                continue
            self.by_key[op.key] = number
            if op.is_boundary:
                self.boundaries[op.key] = number
            else:
                self.by_module.setdefault(op.module, []).append(number)

    @property
    def all(self) -> list[int]:
        return [*self.by_key.values()]

    def text(self, number: int) -> Hashable:
        op = self.ops[number]
        return op.function, op.output, op.site.code, op.site.variable

    def place(self, number: int) -> Hashable:
        """Where it is called, and what stands there: a line that moved may come to lie where its like was."""
        op = self.ops[number]
        return op.site.chain, op.site.function, self.text(number)

    def function(self, number: int) -> tuple[str, int]:
        op = self.ops[number]
        return op.function, op.output


class _Module:
    """The ops of a module in both runs."""

    def __init__(self, matches: Matches, mine: _Ops, theirs: _Ops, module: str) -> None:
        self.matches, self.mine, self.theirs, self.module = matches, mine, theirs, module

    def match(self, a: list[int], b: list[int]) -> None:
        """Match the ops of the module, from what is surest on."""
        mine, theirs, matches = self.mine, self.theirs, self.matches
        at = {mine.place(number): number for number in a}
        matches.add([(at[p], number) for number in b if (p := theirs.place(number)) in at], PLACE)
        placed = {*at} & {theirs.place(number) for number in b}
        if len(placed) == len(a) == len(b):
            return
        tokens = [
            [(PLACE, p) if (p := ops.place(n)) in placed else (TEXT, ops.text(n)) for n in numbers]
            for ops, numbers in ((mine, a), (theirs, b))
        ]
        stretches: list[tuple[int, int, int, int]] = []
        for tag, a0, a1, b0, b1 in _opcodes(*tokens):
            if tag == "equal":
                new = [(x, y) for x, y in zip(a[a0:a1], b[b0:b1], strict=True) if y not in matches.pairs]
                matches.add(new, TEXT)
            else:
                stretches.append((a0, a1, b0, b1))
        for a0, a1, b0, b1 in stretches:
            again = self._meet_again(a[a1:])
            matched_a = {*matches.pairs.values()}
            of_a = [n for n in a[a0:a1] if n not in matched_a]
            of_b = [n for n in b[b0:b1] if n not in matches.pairs]
            self._stretch(of_a, of_b, again=again)

    def _meet_again(self, following: Sequence[int]) -> bool:
        """Whether the first value after a stretch that both runs make is the same in both."""
        to = {a: b for b, a in self.matches.pairs.items()}
        for number in following:
            if number in to and self.mine.trace.events[self.mine.trace.first_of(number)].floating:
                equal = self.matches.equal(number, to[number])
                if equal is not None:
                    return equal
        for key, number in self.theirs.boundaries.items():
            op = self.theirs.ops[number]
            if op.module == self.module and op.function == "output" and key in self.mine.by_key:
                return bool(self.matches.equal(self.mine.by_key[key], number))
        return False

    def _stretch(self, a: list[int], b: list[int], *, again: bool) -> None:
        """Match ops whose lines read otherwise: those of one function and value, then those of one function, then the others.

        Args:
            again: whether both runs make the same of what the stretch makes.
        """
        matches = self.matches
        of = matches.signatures_a.of, matches.signatures_b.of

        def both(ops: _Ops, number: int, signature: Callable[[int], bytes | None]) -> Hashable:
            return ops.function(number), signature(number) or b""

        matches.add(
            _in_order(a, b, lambda n: both(self.mine, n, of[0]), lambda n: both(self.theirs, n, of[1])),
            FUNCTION,
        )
        for left_a, left_b in self._between(a, b):
            pairs = _in_order(left_a, left_b, self.mine.function, self.theirs.function)
            matches.add([p for p in pairs if not (again and matches.equal(*p) is False)], FUNCTION)
        for left_a, left_b in self._between(a, b):
            matches.add(
                [p for p in self._by_form(left_a, left_b) if self._may_stand(*p, again=again)], STRUCTURE
            )

    def _between(self, a: list[int], b: list[int]) -> list[tuple[list[int], list[int]]]:
        """What is left of a stretch in both runs between those that were matched."""
        index = {number: i for i, number in enumerate(a)}
        parts: list[tuple[list[int], list[int]]] = []
        start, left = 0, list[int]()
        for number in b:
            at = index.get(self.matches.pairs.get(number, -1))
            if at is None:
                left.append(number)
            elif at >= start:
                parts.append((a[start:at], left))
                start, left = at + 1, []
        return [*parts, (a[start:], left)]

    def _by_form(self, a: list[int], b: list[int]) -> list[tuple[int, int]]:
        """Ops that are left between neighbours, of forms of which both runs have as many."""
        form_a, form_b = self.matches.signatures_a.form, self.matches.signatures_b.form
        often = Counter(map(form_a, a)), Counter(map(form_b, b))
        usable = {form for form, n in often[0].items() if often[1][form] == n}
        pairs: list[tuple[int, int]] = []
        for form in usable:
            pairs += zip(
                [n for n in a if form_a(n) == form], [n for n in b if form_b(n) == form], strict=True
            )
        return pairs

    def _may_stand(self, a: int, b: int, *, again: bool) -> bool:
        views = self.matches.signatures_a.is_view(a), self.matches.signatures_b.is_view(b)
        if any(views):
            return all(views)
        equal = self.matches.equal(a, b)
        return equal is not None and (equal or not again)


def _in_order(
    a: list[int], b: list[int], of_a: Callable[[int], Hashable], of_b: Callable[[int], Hashable]
) -> list[tuple[int, int]]:
    return [
        pair
        for tag, a0, a1, b0, b1 in _opcodes([*map(of_a, a)], [*map(of_b, b)])
        if tag == "equal"
        for pair in zip(a[a0:a1], b[b0:b1], strict=True)
    ]


def _opcodes(a: Sequence[Hashable], b: Sequence[Hashable]) -> Sequence[tuple[str, int, int, int, int]]:
    return SequenceMatcher(None, a, b, autojunk=False).get_opcodes()


def _by_value(
    matches: Matches, mine: _Ops, theirs: _Ops, a: Sequence[int], b: Sequence[int]
) -> list[tuple[int, int]]:
    """Ops of what is left that made the same values: of several the same functions first, then in their order."""
    of_a, of_b = matches.signatures_a, matches.signatures_b
    groups: dict[bytes | None, tuple[list[int], list[int]]] = {}
    for side, (numbers, of) in enumerate(((a, of_a), (b, of_b))):
        for number in numbers:
            if of.is_telling(number):
                groups.setdefault(of.of(number), ([], []))[side].append(number)
    pairs: list[tuple[int, int]] = []
    for group_a, group_b in groups.values():
        same = _in_order(group_a, group_b, mine.function, theirs.function)
        used_a, used_b = {x for x, _ in same}, {y for _, y in same}
        pairs += same
        for boundary in (False, True):
            pairs += zip(
                [n for n in group_a if n not in used_a and mine.ops[n].is_boundary is boundary],
                [n for n in group_b if n not in used_b and theirs.ops[n].is_boundary is boundary],
                strict=False,
            )
    return pairs


def _rename(other: StoredTrace, matches: Matches, mine: _Ops, theirs: _Ops) -> None:
    """Put run A's ops in the place of those of run B that are the same, and what is run B's alone where run A has nothing."""
    numbers = {id(op): number for number, op in enumerate(theirs.ops)}

    def renamed(op: Op) -> Op:
        number = matches.pairs.get(numbers[id(op)])
        if number is not None:
            counterpart = mine.ops[number]
            return replace(
                op,
                module=counterpart.module,
                function=counterpart.function,
                output=counterpart.output,
                site=counterpart.site,
            )
        return replace(op, site=_apart(op.site)) if op.key in mine.by_key else op

    other.rename(renamed)


def _apart(site: Site) -> Site:
    return replace(site, chain=f"{site.chain} (run B)")
