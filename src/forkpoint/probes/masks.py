"""Which calls lack a mask: of the model's forward calls, and the op at the origin. Asked where masks may be the cause."""

from __future__ import annotations

import inspect

from torch import Tensor

from forkpoint.explain.session import Session, Traced
from forkpoint.result import Divergence

_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def missing_masks(session: Session, origin: Divergence | None) -> str:
    """A sentence or more that say which calls are given no mask though others are; empty where none lacks one.

    Args:
        session: the runs.
        origin: where the difference enters, with how its inputs compare.
    """
    sentences: list[str] = []
    for run, traced in (("A", session.a), ("B", session.b)):
        if not _has_padding(traced):
            continue  # it needs none
        calls = _without(traced)
        if calls and _takes_mask(traced):
            every = len(calls) == len(traced.run.calls)
            sentences.append(
                f"Run {run} gives no mask" if every else f"Run {run} gives no mask in {_calls(calls)}"
            )
        elif origin is not None:
            sentences += _of_op(origin, run)
    return ". ".join(sentences)


def _without(traced: Traced) -> list[int]:
    """The forward calls that are given no mask."""
    return [
        index
        for index, call in enumerate(traced.run.calls)
        if not any("mask" in name and isinstance(value, Tensor) for name, value in call.items())
    ]


def _has_padding(traced: Traced) -> bool:
    return any(bool((~c.valid).any()) for entry in traced.run.layout.calls for c in entry.values())


def _takes_mask(traced: Traced) -> bool:
    """Whether the model's forward names a mask among what it takes."""
    forward = getattr(type(traced.run.modules), "forward", None)
    return forward is not None and any("mask" in name for name in inspect.signature(forward).parameters)


def _of_op(origin: Divergence, run: str) -> list[str]:
    """That a run calls attention at the origin without a mask."""
    other = "only in a" if run == "B" else "only in b"
    masks = {item.status for item in origin.inputs if "mask" in item.name}
    if origin.function not in _ATTENTION or masks - {other}:
        return []
    return [f"Run {run} calls {origin.op} ({origin.source}) without a mask"]


def _calls(numbers: list[int]) -> str:
    """Forward calls by their numbers.

    >>> _calls([1]), _calls([1, 2, 3]), _calls([0, 2])
    ('call 1', 'calls 1 to 3', 'calls 0, 2')
    """
    if len(numbers) == 1:
        return f"call {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"calls {numbers[0]} to {numbers[-1]}"
    return f"calls {', '.join(map(str, numbers))}"
