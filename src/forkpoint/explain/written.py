"""Why an op's input differs though no op before it does: what one run alone writes in place, or does more often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.hooks import Fetch
from forkpoint.capture.trace import Op
from forkpoint.capture.writes import INDEXED_WRITES
from forkpoint.explain.session import Session, Traced
from forkpoint.match import Joined
from forkpoint.result import InputComparison

_SHAPING = frozenset(
    {"requires_grad_", "detach_", "unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "resize_"}
)
"""Functions that end like those that write, and change no element."""
_MOST = 400
"""Ops up to which a run is looked at: each of them is copied as it comes by."""
_SHOWN = 3


def written_in_one_run(
    session: Session, row: Joined, names: Sequence[str], moved: Sequence[InputComparison]
) -> str | None:
    """What to say of writes in place that reach an op's input in one run alone; None where there are none.

    A tensor that shares its memory with another changes as that one is written, though no op makes it anew.

    Args:
        row: the op that reads.
        names: those of its tensors, in the order in which they go in.
        moved: those that differ.
    """
    if row.difference is None:
        return None
    indices = [n for n, name in enumerate(names) if any(argument.name == name for argument in moved)]
    events = row.difference.event_a, row.difference.event_b
    a, b = (
        _writing(traced, row.op, event, indices)
        for traced, event in zip((session.a, session.b), events, strict=True)
    )
    for run, mine, theirs in (("A", a, b), ("B", b, a)):
        alone = [place for key, place in mine.items() if key not in theirs]
        if alone:
            rest = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
            return (
                f"run {run} alone writes in place into what this op reads: {', '.join(alone[:_SHOWN])}{rest}"
            )
    return None


def passed_more_often(session: Session, row: Joined) -> str | None:
    """What to say of an op that comes by more often in one run before another op, as where one leaves a loop of layers earlier."""
    if row.difference is None or len(session.a.run.calls) != len(session.b.run.calls):
        return None
    a, b = (
        _passes(traced, event)
        for traced, event in ((session.a, row.difference.event_a), (session.b, row.difference.event_b))
    )
    for key, (place, count) in a.items():
        other = b.get(key, ("", count))[1]
        if other != count:
            return f"before this op {place} is passed another number of times: {count} in run A, {other} in run B"
    return None


def _passes(traced: Traced, stop: int) -> dict[Any, tuple[str, int]]:
    """How often each op of numbers is passed before an event, and its place."""
    trace = traced.trace
    counted = Counter(trace.op_of(index) for index in range(stop) if trace.events[index].status != "view")
    passed = ((trace.ops[number], count) for number, count in counted.items())
    return {trace.key(op): (op.place, count) for op, count in passed if not op.is_boundary}


def _writing(traced: Traced, op: Op, event: int, inputs: list[int]) -> dict[Any, str]:
    """The ops of a run, before an event, that write into the memory of its inputs: their places by their keys."""
    trace = traced.trace
    passed = dict.fromkeys(trace.op_of(index) for index in range(event))
    writes = [trace.ops[number] for number in passed if _writes(trace.ops[number])]
    if not writes or len(writes) > _MOST:
        return {}
    seen: list[tuple[Op, torch.UntypedStorage]] = []
    writers: dict[Any, str] = {}

    def noting(write: Op) -> Callable[..., Callable[[], None]]:
        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], None]:
            memory = _memory(next(_tensors((*args, *kwargs.values())), None))
            if memory is not None:
                seen.append((write, memory))  # kept, so that no other tensor gets the same memory
            return lambda: None

        return look

    def reading(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], None]:
        tensors = list(_tensors((*args, *kwargs.values())))
        read = {m.data_ptr() for n in inputs if n < len(tensors) and (m := _memory(tensors[n])) is not None}
        writers.update({trace.key(write): write.place for write, memory in seen if memory.data_ptr() in read})
        return lambda: None

    at = trace.events[event]
    fetches = [
        Fetch(_key(write), None, None, _nothing, None, noting(write))
        for write in writes
        if write.key != op.key
    ]
    traced.again([*fetches, Fetch(_key(op), at.call, at.nth, _nothing, None, reading)])
    return writers


def _writes(op: Op) -> bool:
    name = op.function
    in_place = name.endswith("_") and not name.endswith("__") and name not in _SHAPING
    return not op.is_boundary and (in_place or name in INDEXED_WRITES)


def _key(op: Op) -> tuple[str, str, str]:
    return op.module, op.function, op.site.chain


def _nothing(_: object) -> None:
    pass


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _memory(value: Tensor | None) -> torch.UntypedStorage | None:
    try:
        memory = None if value is None else value.untyped_storage()
        return memory if memory is not None and memory.data_ptr() else None
    except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
        return None
