"""What a report says of an op of two traces: where it is in run B, how it was found there, and why the other run lacks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from forkpoint.capture.trace import Op
from forkpoint.investigation import op_row
from forkpoint.match import Joined
from forkpoint.result import OpRow
from forkpoint.traces.matching import Matches
from forkpoint.traces.reading import TraceFolder
from forkpoint.traces.renaming import Renaming

if TYPE_CHECKING:
    from forkpoint.traces.signatures import Signatures

MOST_OPS = 20_000
"""Ops of a run up to which it is looked for one that made the value that the other run alone seems to have."""


class Told:
    """The rows of a result of two traces.

    Args:
        one, other: the traces, ops of the second renamed.
        matches: which op is which.
        modules: by the path in run A, what run B calls a module otherwise.
    """

    def __init__(
        self, one: TraceFolder, other: TraceFolder, matches: Matches, modules: Mapping[str, Renaming]
    ) -> None:
        self.one, self.other, self.matches, self.modules = one, other, matches, modules

    def row(self, joined: Joined) -> OpRow:
        """What a report lists of an op."""
        row = op_row(joined)
        if joined.first_a is not None and joined.first_b is not None:
            return replace(row, **self.place_in_b(joined))
        if joined.first_b is not None:
            recorded = self.matches.recorded[joined.first_b.op]
            row = replace(row, op=recorded.name, module=recorded.module)
        return replace(row, reason=row.reason or self._why_alone(joined))

    def place_in_b(self, joined: Joined) -> dict[str, Any]:
        """The op's name, place and line in run B where they are others, and how it was found."""
        if joined.first_b is None:
            return {}
        number = joined.first_b.op
        theirs, renaming = self.matches.recorded[number], self.modules.get(joined.op.module)
        how = self.matches.how.get(number, "")
        how_matched = {"matched": how, "module_matched": renaming.how if renaming is not None else ""}
        if how == "place" and theirs.module == joined.op.module:
            return how_matched
        source, code = ("", "") if theirs.is_boundary else (theirs.site.short, theirs.site.code)
        return {**how_matched, "op_b": theirs.name, "source_b": source, "code_b": code}

    # ------------------------------------------------------------------ ops of one run alone

    def _why_alone(self, joined: Joined) -> str:
        """Why an op of one run has no counterpart."""
        in_a = joined.first_a is not None
        event = joined.first_a or joined.first_b
        assert event is not None
        signatures = self.matches.signatures_a if in_a else self.matches.signatures_b
        made = signatures.of(event.op)
        maker = None if made is None else self._makers[1 if in_a else 0].get(made)
        if maker is not None:
            return f"the other run has the same value from {maker.place}"
        if event.status in ("view", "alias"):
            return "it makes no value of its own"
        if joined.op.module not in self._modules_of[1 if in_a else 0]:
            return "the other run calls no module of this path"
        if made is None:
            return "nothing that is like it stands in its place in the other run"
        return "the other run has no such value, and nothing that is like it stands in its place"

    @cached_property
    def _modules_of(self) -> tuple[set[str], set[str]]:
        return {op.module for op in self.one.trace.ops}, {op.module for op in self.other.trace.ops}

    @cached_property
    def _makers(self) -> tuple[dict[bytes, Op], dict[bytes, Op]]:
        """Of each run, by values that are telling, the first op that made them."""
        matches = self.matches
        return (
            _makers(matches.signatures_a, self.one.trace.ops),
            _makers(matches.signatures_b, matches.recorded),
        )


def _makers(signatures: Signatures, ops: list[Op]) -> dict[bytes, Op]:
    makers: dict[bytes, Op] = {}
    if len(ops) > MOST_OPS:
        return makers
    for number in sorted(range(len(ops)), key=signatures.trace.first_of):
        if signatures.trace.first_of(number) < len(signatures.trace) and signatures.is_telling(number):
            made = signatures.of(number)
            assert made is not None
            makers.setdefault(made, ops[number])
    return makers
