"""What the probes do to values as they pass by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.match.pairs import Pairs
from forkpoint.probes.resampled import Resampled
from forkpoint.probes.watchers import OtherContent, Patch, Patched, Store, Watcher
from forkpoint.support.memory import Memory


class Plain(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden * 2


def test_other_content_replaces_what_is_not_kept_and_nothing_else():
    both = session(*pair(Plain(), batch(ids()), batch(ids(), left=1)))
    before = both.b.results[0]["logits"][0]
    watcher = OtherContent(np.asarray(both.shared.b >= 0))
    after = both.b.again(watcher=watcher)[0]["logits"][0]
    assert watcher.replaced == 2
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.equal(before[:, 0], after[:, 0])
    nothing = OtherContent(np.ones_like(watcher.keep))
    assert torch.equal(both.b.again(watcher=nothing)[0]["logits"][0], before)
    assert nothing.replaced == 0


def test_a_store_keeps_every_value_and_what_it_was_made_of():
    both = session(*pair(Plain(), batch(ids()), batch(ids())))
    store = Store(1 << 20)
    both.a.again(watcher=store)
    by_name = {kept.op.name: (event, kept) for event, kept in store.snapshots.items()}
    event, kept = by_name["(model)/mul"]
    tanh = next(e for e, k in store.snapshots.items() if k.op.name == "(model)/tanh")
    assert store.sources[event] == [tanh]
    assert torch.equal(kept.value, store.snapshots[tanh].value * 2)
    filed = Store(1 << 20, shelf=Memory(1).shelf())
    both.a.again(watcher=filed)
    assert filed.snapshots.keys() == store.snapshots.keys()
    assert all(torch.equal(k.value, store.snapshots[e].value) for e, k in filed.snapshots.items())
    assert all(
        (k.dtype, k.numeric) == (k.value.dtype, store.snapshots[e].numeric)
        for e, k in filed.snapshots.items()
    )
    small = Store(0)
    both.a.again(watcher=small)
    assert small.snapshots == {}
    assert small.sources.keys() == store.sources.keys()


def test_an_op_that_gives_its_argument_back_was_made_of_what_that_was_before():
    class Back(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return F.dropout((hidden * 2).contiguous(), 0.5, training=False)

    both = session(*pair(Back(), batch(ids()), batch(ids())))
    store = Store(1 << 20)
    both.a.again(watcher=store)
    assert all(max(sources, default=-1) < event for event, sources in store.sources.items())
    named = {op.name: event for event, (op, _) in store.ops.items()}
    assert store.sources[named["(model)/contiguous"]] == [named["(model)/mul"]]
    assert store.sources[named["(model)/dropout"]] == [named["(model)/contiguous"]]


def test_a_patch_puts_values_in_their_places():
    class Offset(Model):
        by = 0.0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return (hidden + self.by) * 1

    a, b = Offset(), Offset()
    b.by = 1.0
    both = session(*pair(a, batch(ids()), batch(ids(), left=1), b))
    store_a, store_b = Store(1 << 20), Store(1 << 20)
    both.a.again(watcher=store_a)
    both.b.again(watcher=store_b)
    from forkpoint.probes.meetings import pair_values

    kept_a = next(k for k in store_a.snapshots.values() if k.op.name == "(model)/add")
    kept_b = next(k for k in store_b.snapshots.values() if k.op.name == "(model)/add")
    pairs = pair_values(both, kept_a, kept_b)
    patch = Patch({kept_b.place: [(kept_a.value, pairs)]})
    patched = both.b.again(watcher=patch)[0]["logits"][0]
    assert patch.applied == 1
    assert torch.allclose(patched[:, 1:], both.a.results[0]["logits"][0])
    key = (*kept_b.place[0][:2], "elsewhere")
    absent = Patch({(key, 0, 0, 0): [(kept_a.value, pairs)]})
    both.b.again(watcher=absent)
    assert absent.applied == 0


class AskedAlways:
    """Another watcher, which is asked at every op whether it changes anything."""

    entrances_only = False

    def __init__(self, inner: Watcher) -> None:
        self.edit, self.saw = inner.edit, inner.saw

    def edits(self, key: Any) -> bool:
        return True


def test_a_watcher_changes_nothing_else_when_it_is_asked_at_every_op():
    both = session(*pair(Plain(), batch(ids()), batch(ids(), left=1)))
    store = Store(1 << 20)
    both.b.again(watcher=store)
    kept = next(k for k in store.snapshots.values() if k.op.name == "(model)/mul")
    swapped = Pairs(np.array([0, 3]), np.array([3, 0]), np.array([0, 1]))
    keep = np.asarray(both.shared.b >= 0)
    makers: list[Callable[[], Watcher]] = [
        lambda: OtherContent(keep),
        lambda: Patch({kept.place: [(kept.value, swapped)]}),
        lambda: Patched(Patch({kept.place: [(kept.value, swapped)]}), Store(0)),
        lambda: Resampled({kept.place}, ~keep),
    ]
    for make in makers:
        plain, some, every = (
            both.b.again(watcher=watcher)[0]["logits"][0] for watcher in (None, make(), AskedAlways(make()))
        )
        assert torch.equal(some, every)
        assert not torch.equal(some, plain)
