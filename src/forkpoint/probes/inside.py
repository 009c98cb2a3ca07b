"""The inside probe: which operator of a library decides inside, where no decision can be seen or held?

A kernel that quantises its input, say, and returns numbers: a change of one unit in the last place goes through it as a
whole step. Each such operator is repeated alone, on its own inputs, with these moved so little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from forkpoint.capture.recorder import CopiedCall, Fetch
from forkpoint.explain.session import Session
from forkpoint.result import ProbeResult

_MOST = 16
"""Calls that are looked at, the first of each operator before the second of any."""
_TRIES = 4
_STEP, _MOST_STEP = 1e3, 0.25
"""Units in the last place of the result's largest value from which on a change is a step, and no rounding; and the share
of that value that always is one."""


def decides_inside(session: Session) -> ProbeResult | None:
    """The first operator whose result a unit in the last place of its inputs moves by a step; None where there is none."""
    trace, calls = session.a.trace, list[CopiedCall]()
    fetches: list[tuple[int, Fetch]] = []
    for index, (op, call, form, *_) in enumerate(trace.rows):
        if "." in op.function and not op.function.startswith("aten.") and form.floating and not op.output:
            key, nth = (op.module, op.function, op.site.chain), trace.nth(index)
            before = sum(fetch.key[1] == op.function for _, fetch in fetches)
            fetches.append((before, Fetch(key, call, nth, calls.append)))
    if not fetches:
        return None
    session.a.again([fetch for _, fetch in sorted(fetches, key=lambda pair: pair[0])[:_MOST]])
    for one in calls:
        by = _step_of(one)
        if by:
            text = (
                f"decisions are taken inside {one.op.place}, where they can't be held: alone, with its inputs moved by one "
                f"unit in the last place, its result moves by {by:.2g}"
            )
            return ProbeResult("inside", "decides", by, text)
    return None


def _step_of(call: CopiedCall) -> float:
    """By how much inputs that are moved by one unit in the last place move a call's result; 0 where that is rounding."""
    if call.func is None or call.op.function.endswith("_"):
        return 0.0
    before = _made(call, None)
    again = _made(call, None)
    if before is None or again is None or not torch.equal(before, again):
        return 0.0
    largest = float(before.abs().max()) if before.numel() else 0.0
    step = min(_STEP * torch.finfo(call.outputs[0].dtype).eps, _MOST_STEP) * largest
    largest_move = 0.0
    for seed in range(_TRIES):
        moved = _made(call, torch.Generator().manual_seed(seed))
        if moved is not None and moved.shape == before.shape:
            largest_move = max(largest_move, float((moved - before).abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return largest_move if largest_move > step else 0.0


def _made(call: CopiedCall, generator: torch.Generator | None) -> Tensor | None:
    """What a call returns first, as float64; with its inputs moved where there is a generator."""
    by_id: dict[int, Tensor] = {}

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            return value
        if id(value) not in by_id:  # what is given twice stays the same
            by_id[id(value)] = value.clone() if generator is None else _moved(value, generator)
        return by_id[id(value)]

    args, kwargs = pytree.tree_map(given, (call.args, call.kwargs))
    try:
        with torch.no_grad():
            result = call.func(*args, **kwargs)
    except Exception:  # noqa: BLE001 - an operator may refuse what it is not given by its model
        return None
    first = next((leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)), None)
    return None if first is None else first.detach().double()


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    """Each number moved by a unit in its last place (or half of one), up or down at random."""
    if value.dtype.itemsize == 1:
        return value.clone()
    up = torch.randint(0, 2, value.shape, generator=generator).to(value.device, torch.bool)
    unit = torch.finfo(value.dtype).eps
    return torch.where(up, value * (1 + unit), value * (1 - unit))
