"""The cache probe: does the origin read what an earlier call left, and is that right there?"""

from __future__ import annotations

import torch
from torch import Tensor

from forkpoint.errors import reraise_out_of_memory
from forkpoint.probes.bench import Bench
from forkpoint.probes.given_caches import caches_of
from forkpoint.probes.watchers import Patch, Patched, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.run import copy_inputs, tensors_in


def reads_cache(a: Bench, b: Bench) -> ProbeResult | None:
    """Show that the origin reads values of an earlier call, or of a cache that was given; None where it does not."""
    for bench in (b, a):
        shown = _earlier_call(bench)
        if shown is not None:
            return shown
    return _given(a, b)


def _earlier_call(bench: Bench) -> ProbeResult | None:
    """Whether values that an earlier call left move the origin; none of them differs, else it were the origin."""
    crossing = _crossing(bench.store, bench.root, bench.call)
    if not crossing:
        return None
    moved = bench.move(bench.earlier, before=crossing)
    if moved is None or not moved.numbers:
        return None
    text = (
        f"the origin of run {bench.side.upper()}, in call {bench.call}, reads what an earlier call left: other values "
        f"there move it by {moved.by:.2g}, and where both runs have them they were equal when they were made"
    )
    return ProbeResult("cache", "reads", moved.by, text)


def _crossing(store: Store, root: int, call: int) -> set[int]:
    """Events of earlier calls that the origin was made from, with nothing of their own call between."""
    now = store.behind([root], lambda event: store.ops[event][1].call == call)
    sources = {source for event in (root, *now) for source in store.sources.get(event, ())}
    return {event for event in sources if event in store.ops and store.ops[event][1].call < call}


def _given(a: Bench, b: Bench) -> ProbeResult | None:
    """Whether the origin reads a cache that was given, which the other run was not given, or another one."""
    caches = [[caches_of(call) for call in bench.traced.run.calls[: bench.call + 1]] for bench in (a, b)]
    tensors = [[t for cache in of_calls for t in tensors_in(cache)] for of_calls in caches]
    if not any(tensors) or _same(*tensors):
        return None
    for bench, own in ((b, tensors[1]), (a, tensors[0])):
        by = _moves(bench) if own else 0.0
        if by:
            text = (
                f"the origin reads the cache that run {bench.side.upper()} was given, which is not the other run's: "
                f"other values in it move the origin by {by:.2g}"
            )
            return ProbeResult("cache", "reads", by, text)
    return None


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and x.device == y.device and bool((x == y).all())
        for x, y in zip(a, b, strict=True)
    )


def _moves(bench: Bench) -> float:
    """How far other values in the given caches move the origin."""
    calls = [copy_inputs(call) for call in bench.traced.run.calls]
    generator = torch.Generator().manual_seed(0)
    own = {
        t.data_ptr()
        for call in bench.traced.run.calls
        for cache in caches_of(call)
        for t in tensors_in(cache)
    }
    for call in calls:
        for tensor in (t for cache in caches_of(call) for t in tensors_in(cache) if t.is_floating_point()):
            if tensor.data_ptr() in own:
                return 0.0  # a cache that could not be copied is its user's
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.reshape(-1)[order].reshape(tensor.shape) * 1.5)
    before = bench.store.snapshots[bench.root]
    store = Store(bench.store.limit, lambda op: op.key == before.op.key, bench.store.shelf)
    try:
        watcher = Patched(Patch(bench.right), store)
        bench.traced.again(promotion=Promotion(), watcher=watcher, calls=calls)
    except Exception as error:  # noqa: BLE001 - other values may steer the model's code anywhere
        reraise_out_of_memory(error)
        return 0.0
    again = next((k for k in store.snapshots.values() if k.place == before.place), None)
    moved = None if again is None else bench.compare(before, again)
    return moved.by if moved is not None and moved.numbers else 0.0
