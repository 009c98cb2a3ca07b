"""What a second pass can be asked to keep: a value, or a call with copies of its arguments and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forkpoint.capture.labels import Label
from forkpoint.capture.trace import Op
from forkpoint.runs.contents import MOST_COPIED
from forkpoint.support.readable import why_unreadable

Look = Callable[[tuple[Any, ...], dict[str, Any]], Callable[[], Any]]
"""Called with the arguments of a call right before it is made; returns a function that is called right after the call, and
whose result is `CopiedCall.seen`."""


@dataclass
class Fetch:
    """A value, or a whole call, that a second pass should keep.

    Attributes:
        key: the op's key (module, function, chain), without the output.
        call, nth: which of the op's passes; None for all.
        take: is given each call that matches when it is over, and each output of a module as soon as its label is known.
    """

    key: tuple[str, str, str]
    call: int | None
    nth: int | None
    take: Callable[[CopiedCall], None]
    output: int | None = None
    """For a module's output, which of several."""
    look: Look | None = None
    """For a call of a function, what looks at it before and after."""


@dataclass
class CopiedCall:
    """One call of a torch function, with copies of what went in and came out."""

    op: Op
    call: int
    nth: int
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    input_labels: dict[int, Label | None]
    """By id of the copied tensor."""
    output_labels: tuple[Label | None, ...]
    owned: dict[int, str] = field(default_factory=dict[int, str])
    """Full names of parameters and buffers among the inputs, by id of the copied tensor."""
    kept_alive: list[Tensor] = field(default_factory=list[Tensor])
    """Tensors that the two tables speak of, besides the arguments."""
    seen: Any = None
    """What `Fetch.look` saw."""


class CopiedArguments(NamedTuple):
    """Copies of what goes into a call.

    Attributes:
        args, kwargs: with the copies in place of the tensors.
        labels: by id of the copied tensor.
        owned: full names of parameters and buffers among them, by id of the copied tensor.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: dict[int, Label | None]
    owned: dict[int, str]


_PLAIN = (Tensor, nn.Parameter)


def copied(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Mapping[int, str],
    label_of: Callable[[Tensor], Label | None],
) -> CopiedArguments:
    """Copy what goes into a call, before the call can change it.

    Weights above 64 MiB (`MOST_COPIED`), and those of tensor subclasses, are not copied: the model's own tensors are given.

    Args:
        args, kwargs: of the call.
        names: full names of the model's parameters and buffers, by their ids.
        label_of: gives the label of a tensor.
    """
    labels: dict[int, Any] = {}
    owned: dict[int, str] = {}
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in copies:
                name = names.get(id(value))
                plain = type(value) in _PLAIN  # others' weights may hold more than their values
                stays = name is not None and (value.nbytes > MOST_COPIED or not plain)
                mine = value.detach() if stays else clone(value)
                copies[id(value)] = mine
                labels[id(mine)] = label_of(value)
                if name is not None:
                    owned[id(mine)] = name
            return copies[id(value)]
        if type(value) in (tuple, list, torch.Size):
            return type(value)(copy(item) for item in value)
        if type(value) is dict:
            return {key: copy(item) for key, item in value.items()}
        return value

    return CopiedArguments(copy(args), copy(kwargs), labels, owned)


def clone(value: Tensor) -> Tensor:
    """A copy of a tensor with the same strides; one on the meta device where its memory is gone."""
    value = value.detach()
    if value.layout is torch.strided and why_unreadable(value):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if value.layout != torch.strided or value.is_contiguous():
        return value.clone()
    if any(stride == 0 for stride in value.stride()):
        size = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True) if n)
        flat = value.as_strided((size,), (1,)).clone()
        return flat.as_strided(value.shape, value.stride(), 0)
    return value.clone(memory_format=torch.preserve_format)
