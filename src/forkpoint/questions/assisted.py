"""The forward calls of assisted generation, which looks at several candidates at once and takes back what it rejects."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.runs.layout import PADDING, Coordinates, Layout
from forkpoint.runs.returned import CACHES, caches_in
from forkpoint.runs.run import Run

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

LOOKED_UP = 10
"""Tokens that are guessed at once from what the text had before, where there is no model to guess them."""
_CACHED = "kept_tokens"
_TENSORS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class ForwardCall:
    """One forward call that generation has made.

    Attributes:
        inputs: its tensors by name, `input_ids` int64 [1, columns] among them.
        cached: tokens that its cache held.
    """

    inputs: dict[str, Tensor]
    cached: int


@contextmanager
def recording(model: Any) -> Generator[list[ForwardCall]]:
    """Within the block, the forward calls of a model are added to the list."""
    calls: list[ForwardCall] = []

    def note(_: Any, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        past = next((given[name] for name in CACHES if given.get(name) is not None), None)
        inputs = {name: given[name].clone() for name in _TENSORS if isinstance(given.get(name), torch.Tensor)}
        calls.append(ForwardCall(inputs, 0 if past is None else int(past.get_seq_length())))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def again(model: Any, recorded: list[ForwardCall], end: int, name: str) -> tuple[Run, int]:
    """A run of the calls up to the one that sees token `end - 1`, and the column of the last one in which that is.

    A candidate that was rejected, and what comes after token `end - 1`, is no token of the layout.
    """
    used = [call for call in recorded if call.cached < end]
    ends = [*(call.cached for call in used[1:]), end]
    coordinates: list[Coordinates] = []
    for call, stop in zip(used, ends, strict=True):
        position = call.cached + torch.arange(call.inputs["input_ids"].shape[1])[None]
        before_end = position < stop
        coordinates.append(
            Coordinates(torch.where(before_end, 0, PADDING), torch.where(before_end, position, PADDING))
        )
    calls = [{**call.inputs, "use_cache": True, _CACHED: call.cached} for call in used]
    return Run(model, calls, layout=Layout(coordinates), call=_cropping, name=name), end - 1 - used[-1].cached


def _cropping(model: Any, inputs: dict[str, Any]) -> Any:
    """Call a model with a cache from which the rejected tokens are taken."""
    inputs = dict(inputs)
    length = inputs.pop(_CACHED)
    past = next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)
    if past is None:
        output = model(**inputs)
        for cache in caches_in(output, model).values():
            record_past = getattr(cache, "activate_past_recording", None)
            if record_past is not None:  # so that what slid out of a window can be taken back
                record_past()
        return output
    past.crop(length - past.get_seq_length())
    return model(**inputs)
