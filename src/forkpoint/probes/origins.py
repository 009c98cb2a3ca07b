"""Where something other than rounding enters, and how what was put right is told as origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from forkpoint.probes.meetings import Meeting
from forkpoint.probes.trials import Part, Trials, are_many_layers, in_order, percent
from forkpoint.probes.watchers import Store, Values
from forkpoint.result import ProbeResult


@dataclass
class Origin:
    """Where something other than rounding enters.

    Attributes:
        root: the first value that differs though its inputs don't, and whose difference reaches the result.
        seen: the first floating-point value that the difference shows in; often the same.
        closes: how much of the result's gap goes away when it is put right, 0 to 1; of several, when it is after those
            before it. NaN where that was not tried.
        store_a, store_b: what was kept of both runs.
        meetings: the values that both have, by A's event.
        right: what was put in place in run B when `store_b` was kept: run A's values at what was found before.
        earlier: the origins among that, as they met.
        others: the origins after the first, which close the gap together with it; in the order of execution.
    """

    root: Meeting
    seen: Meeting
    closes: float
    result: ProbeResult
    store_a: Store
    store_b: Store
    meetings: dict[int, Meeting]
    right: Values = field(default_factory=Values)
    earlier: tuple[Meeting, ...] = ()
    others: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class Account:
    """Tells what a search put right as origins, with how much of the gap each of them closes.

    Attributes:
        trials: the runs in which parts were put right.
        store_a: what was kept of run A.
        chosen: choices of other tokens, as the search found them.
        worse: what made the result no better, or could not be put in place.
    """

    trials: Trials
    store_a: Store
    chosen: list[Part]
    worse: list[Part]

    def of(self, parts: list[Part]) -> Origin:
        """The origins that parts, all of them put right, show: the first, with the others in it."""
        closed = [0.0, *self._shares(parts)]
        shares: dict[Part, float] = {}
        for part, before, after in zip(parts, closed, closed[1:], strict=False):
            choice = self._choice(part)
            shares[choice] = shares.get(choice, 0.0) + after - before
        first, *others = [self._origin(part, shares[part], parts) for part in in_order(shares)]
        trial = self.trials.of(parts)
        closes = self.trials.closes(trial)
        outcome = "chooses" if parts[0] in self.chosen else self.trials.outcome(trial)
        result = ProbeResult("patch", outcome, None if np.isnan(closes) else closes, self._text(parts))
        return replace(first, result=result, others=tuple(others))

    def _choice(self, part: Part) -> Part:
        """The choice of other tokens that a difference comes from; the part itself where it comes from none."""
        event = part.root.event_a
        return next((c for c in self.chosen if event in self.store_a.reached([c.root.event_a])), part)

    def _origin(self, part: Part, closes: float, parts: Sequence[Part]) -> Origin:
        closes = min(max(closes, 0.0), 1.0) if not np.isnan(closes) else closes
        share = percent(closes) if not np.isnan(closes) else ""
        text = f"put right after those before it, it closes {share or 0} % of the gap"
        figure = None if np.isnan(closes) else closes
        result = ProbeResult("patch", "closes", figure, text)
        root = self._entry(part).root
        of = part.of
        earlier = tuple(
            m for other in parts if other is not part for m in other.passes if m.b.place in of.right
        )
        return Origin(
            root, part.seen, closes, result, self.store_a, of.store, of.meetings.by_a, of.right, earlier
        )

    def _entry(self, part: Part) -> Part:
        """Where the difference of a decision enters: maybe at a number that could not be put right by itself.

        A count of tokens is held against a limit, say, and both depend on the batch. Numbers that reach the decision only
        through what tokens hold, as their positions do, are not what it is made from.
        """
        if part.numeric or part.root.absent:
            return part
        snapshots = self.store_a.snapshots
        made_from = self.store_a.behind(
            [part.root.event_a], lambda e: e in snapshots and not snapshots[e].numeric
        )
        before = (worse for worse in self.worse if not worse.numeric)
        return next((one for one in before if one.root.event_a in made_from), part)

    def _shares(self, parts: Sequence[Part]) -> list[float]:
        """How much of the gap is closed with the first, the first two, ... put right; NaN where it was not tried."""
        shares: list[float] = []
        for number in range(1, len(parts) + 1):
            trial = self.trials.of(parts[:number])
            untold = trial.moves < 0 and self.trials.spent
            shares.append(float("nan") if untold else self.trials.closes(trial))
        return shares

    def _text(self, parts: Sequence[Part]) -> str:
        by_site: dict[tuple[bool, object], list[Part]] = {}
        for part in parts:
            choice = self._choice(part)
            alike = by_site.setdefault((choice is part, choice.site), [])
            if choice not in alike:
                alike.append(choice)
        places = [
            ("" if itself else "right behind ")
            + alike[0].root.a.op.place
            + (f" and in {len(alike) - 1} more layer{'s' * (len(alike) > 2)}" if len(alike) > 1 else "")
            for (itself, _), alike in by_site.items()
        ]
        if parts[0] in self.chosen:
            return f"the runs choose other tokens at {places[0]}"
        trial = self.trials.of(parts)
        text = (
            f"with run A's {'values' if parts[1:] else 'value'} put in place at {' and at '.join(places)}, "
        )
        text = text.replace("at right behind", "right behind") + self.trials.told(trial)
        if sum(map(len, by_site.values())) > 1:
            told = trial.closed and not any(map(are_many_layers, by_site.values()))
            return f"{text}, and each of them is needed" if told else text
        first = self._choice(parts[0])
        root, seen = first.root, first.seen
        return text if seen is root else f"{text}; it shows first in {seen.a.op.name}"
