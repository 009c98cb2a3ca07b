"""Functions without a rule: elementwise where the shapes say so, or asked with other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.rules.call import (
    Call,
    UnknownMovementError,
    tensors_in,
)
from forkpoint.capture.rules.registry import LIBRARY, RULES


def propagate(call: Call) -> list[Label | None]:
    """The label of each output of a call.

    Raises:
        UnknownMovementError: nothing is known about how the function moves tokens.
    """
    rule = RULES.get(call.name) or (RULES.get(LIBRARY) if "." in call.name else None)
    labels = rule(call) if rule else default(call)
    if isinstance(labels, list):
        return labels
    return [labels] * len(call.outputs)


def default(call: Call) -> list[Label | None]:
    if call.name.endswith("_") and not call.name.endswith("__") and isinstance(call.arg(0), Tensor):
        held = call.label(call.arg(0))
        if held is not None and held.k is None and bool(call.labels.table.is_slot(held.q).all()):
            if call.labels.table.one_of_many(
                held.q
            ):  # the state of a loop over columns, or one of its columns
                others = [label for t in call.tensors() if (label := call.label(t)) is not None]
                if all(call.labels.table.one_of_many(label.q) for label in others):
                    return [call.labels.merge(others, call.outputs[0].dim())] * len(call.outputs)
            return [held] * len(call.outputs)  # what is added to a token's features stays that token's
    return [by_shape(call, output) for output in call.outputs]


def by_shape(call: Call, output: Tensor) -> Label | None:
    """The label of an output of the broadcast shape of its inputs; else the answer for other sizes.

    Raises:
        UnknownMovementError: there is none.
    """
    inputs = call.tensors()
    labelled = [t for t in inputs if call.label(t) is not None]
    if not labelled:
        return None
    shape = tuple(output.shape)
    fits = [t for t in labelled if _broadcasts(tuple(t.shape), shape)]
    if len(fits) == len(labelled) and math.prod(shape) == math.prod(_broadcast_shape(inputs, shape)):
        return call.labels.merge([call.label(t) for t in labelled], output.dim())
    return _ask(call, output)


def _broadcasts(small: Shape, big: Shape) -> bool:
    if len(small) > len(big):
        return False
    return all(s in (1, b) for s, b in zip(reversed(small), reversed(big), strict=False))


def _broadcast_shape(inputs: Sequence[Tensor], shape: Shape) -> Shape:
    """The broadcast of the inputs that fit into `shape` at all (parameters of a norm need not)."""
    fitting = [tuple(t.shape) for t in inputs if _broadcasts(tuple(t.shape), shape)]
    return tuple(torch.broadcast_shapes(*fitting)) if fitting else ()


def _ask(call: Call, output: Tensor) -> Label | None:
    """Run the function on meta tensors whose token dimensions have other sizes, and look."""
    sizes = _other_sizes(call)
    index = next(i for i, o in enumerate(call.outputs) if o is output)
    try:
        args, kwargs = _on_meta((call.args, call.kwargs), call, sizes)
        with torch.no_grad():
            answer = tensors_in((call.func(*args, **kwargs),))[index]
    except Exception:  # noqa: BLE001 - any refusal means the same: it can't be asked
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens") from None
    for tensor in call.tensors():
        label = call.label(tensor)
        if label is None:
            continue
        ids = label.q
        varying = [d for d in range(ids.ndim) if ids.shape[d] > 1]
        places: list[int] = []
        for d in varying:
            wanted = sizes[int(tensor.shape[d])]
            place = next(
                (p for p in range(answer.dim()) if answer.shape[p] == wanted and p not in places), None
            )
            if place is None or output.shape[place] != tensor.shape[d]:
                break
            places.append(place)
        else:
            if not varying:
                return call.labels.make(np.full((1,) * output.dim(), ids.reshape(-1)[0], dtype=np.int32))
            squeezed = ids.reshape([ids.shape[d] for d in varying])
            order = np.argsort(places)
            target = [1] * output.dim()
            for d, place in zip(varying, places, strict=True):
                target[place] = ids.shape[d]
            return call.labels.make(np.transpose(squeezed, order).reshape(target))
    new_sizes = set(sizes.values())
    if any(int(n) % new == 0 for n in answer.shape for new in new_sizes if n):
        raise UnknownMovementError(f"no rule says how {call.name} moves tokens")
    tokens = [label for t in call.tensors() if (label := call.label(t)) is not None]
    if all(d == 1 for label in tokens for d in label.q.shape):
        return None
    union = call.labels.table.union(np.concatenate([label.q.reshape(-1) for label in tokens]))
    return call.labels.make(np.full((1,) * output.dim(), union, dtype=np.int32))


_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033)


def _other_sizes(call: Call) -> dict[int, int]:
    """A new, unmistakable size for every size that a token dimension has."""
    sizes: dict[int, int] = {}
    for tensor in call.tensors():
        label = call.label(tensor)
        if label is not None:
            for d, size in enumerate(label.q.shape):
                if size > 1 and int(tensor.shape[d]) not in sizes:
                    sizes[int(tensor.shape[d])] = _PRIMES[len(sizes) % len(_PRIMES)]
    return sizes


def _on_meta(value: Any, call: Call, sizes: dict[int, int]) -> Any:
    if isinstance(value, Tensor):
        label = call.label(value)
        shape = [
            sizes[int(n)] if label is not None and label.q.shape[d] > 1 else int(n)
            for d, n in enumerate(value.shape)
        ]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, tuple):
        return tuple(_on_meta(item, call, sizes) for item in value)
    if isinstance(value, list):
        return [_on_meta(item, call, sizes) for item in value]
    if isinstance(value, dict):
        return {key: _on_meta(item, call, sizes) for key, item in value.items()}
    return value
