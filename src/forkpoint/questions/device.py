"""Two devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import InputError
from forkpoint.models.loading import parse_device
from forkpoint.questions.asking import Options, copied, two_models
from forkpoint.questions.prompts import device_of
from forkpoint.runs.modules import innermost
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result


@says_call
def device(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    against: str | None = None,
    **options: Unpack[Options],
) -> Result:
    """Compare a model on one device with itself on another.

        fp.device(model, tokenizer, "I've got a lovely bunch of coconuts", against="cuda")

    Both runs are one forward call, `[prompts, longest]`. Run B's model is a copy.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        against: `cpu`, `cuda`, `cuda:1`, `mps`; by default cuda, or the CPU where the model is not on it.
        options: see `Options`.

    Raises:
        ModelError: there is no such device here.
        InputError: the model is there already, or can't be copied.
    """
    own = device_of(innermost(model)[1])
    chosen = parse_device(against or ("cuda" if own.type == "cpu" else "cpu"))
    other = moved_to(model, chosen)
    return two_models(model, other, tokenizer, prompts, (str(own), str(chosen)), options)


def moved_to(model: Any, chosen: torch.device) -> Any:
    """A copy of a model on another device.

    Raises:
        InputError: the model is there already, or can't be copied.
    """
    own = device_of(innermost(model)[1])
    if chosen.type == own.type and chosen.index in (own.index, None):
        raise InputError(f"device {chosen} for a model on {own}", "another one")
    return copied(model, "another device").to(chosen)
