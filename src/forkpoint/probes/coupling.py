"""The coupling probe: does the op where the difference enters read what the other run does not have?

Before the origin everything is equal where both runs have it. What only one of them has (padding,
batch mates, later tokens) is given other values there, right before the origin: if a token that
both have changes at the origin, it is coupled to the others at that very op.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from forkpoint.align import gap, pair_elements
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import Recorder
from forkpoint.match import Ints, Shared
from forkpoint.probes.origin import Origin
from forkpoint.probes.watchers import Kept, Key, Patched, Place, Store
from forkpoint.promotion import Promotion
from forkpoint.session import Session, Traced

_UNCHANGED = 1e-9
"""Change of a value, relative to its largest element, that is rounding: other experts, other sizes of products."""


def reads_others(session: Session, origin: Origin) -> bool:
    """Whether a shared token's value at the root depends on values of coordinates that one run alone has."""
    root, met = origin.root, origin.meetings
    met_b = {meeting.event_b for meeting in met.values()}
    return _reads(
        session.b, origin.store_b, root.event_b, met_b, session.shared.b, session.shared.within("b")
    ) or _reads(
        session.a, origin.store_a, root.event_a, met.keys(), session.shared.a, session.shared.within("a")
    )


def _reads(
    traced: Traced, store: Store, root: int, met: AbstractSet[int], numbers: Ints, shared: Shared
) -> bool:
    content = store.reached([event for event, kept in store.kept.items() if _is_content(kept)])
    before = {event for event in _before(store, root, met) & content if event in store.kept}
    watcher = Resampled({store.kept[event].place for event in before}, numbers >= 0)
    kept = store.kept[root]
    again = Store(store.limit, lambda op: op.key == kept.op.key, store.shelf)
    try:
        traced.again(promotion=Promotion(), watcher=Patched(watcher, again))
    except Exception:  # noqa: BLE001 - other values may steer the model's code anywhere
        return False
    if not watcher.replaced:
        return False
    return any(_changed(kept, k, shared) for k in again.kept.values() if k.place == kept.place)


def _changed(before: Kept, after: Kept, shared: Shared) -> bool:
    """Whether some token has another value at an op, or passes there in one of the two alone."""
    pairs = pair_elements(before.value, before.label, after.value, after.label, shared)
    if _tokens(before, shared) != _tokens(after, shared):
        return True
    found = gap(before.value, after.value, pairs)
    return found.differing > 0 and (found.max_rel > _UNCHANGED or not before.dtype.is_floating_point)


def _tokens(kept: Kept, shared: Shared) -> set[int]:
    return set(shared.a[kept.label.q].reshape(-1).tolist()) - {-1} if kept.label is not None else set()


def _is_content(kept: Kept) -> bool:
    """Where content becomes numbers; what is made from sizes and masks alone is the layout's."""
    given = kept.op.is_input and not kept.op.module and kept.dtype.is_floating_point
    return kept.op.function == "embedding" or given


def _before(store: Store, root: int, met: AbstractSet[int]) -> set[int]:
    """The last events before the root that both runs have."""
    alone = store.behind([root], lambda event: event not in met)
    return {source for event in (root, *alone) for source in store.sources.get(event, ())} - alone


@dataclass
class Resampled:
    """Gives coordinates that the other run lacks other values, drawn from the same tensor.

    Attributes:
        places: the calls whose results are changed.
        keep: for each id, whether the other run has it too.
        replaced: how many rows were.
    """

    places: set[Place]
    keep: np.ndarray
    replaced: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    entrances_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.places}

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        if (key, nth, output, recorder.call) not in self.places or label is None or label.k is not None:
            return None
        other = ~self.keep[label.q] & recorder.table.is_slot(label.q)
        if not other.any():
            return None
        self.replaced += int(other.sum())
        mask = torch.from_numpy(spread(other, tuple(value.shape)).copy()).to(value.device)
        drawn = torch.randint(value.numel(), tuple(value.shape), generator=self.generator).to(value.device)
        return torch.where(mask, value.reshape(-1)[drawn], value)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        return None
