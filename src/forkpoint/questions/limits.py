"""What a model or this machine can't take is said in one line before any work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import InputError, reraise_out_of_memory
from forkpoint.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from forkpoint.runs.layout import Layout


GIB = 1 << 30


def check_memory(model: Any, device: torch.device, rows: int, length: int) -> None:
    """Check that what one forward call returns can be held at all.

    It is counted low, token ids, mask and the logits (the last hidden state where there are none) alone, and held against
    all the memory that the device has: what is refused could not have worked.

    Args:
        model: a model of transformers.
        device: where it takes its inputs.
        rows, length: of the input.

    Raises:
        InputError: it can't.
    """
    whole = _memory_of(device)
    dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    config = getattr(model, "config", None)
    of_head = getattr(head, "out_features", None)  # weights may be packed, and of another shape
    features = of_head or getattr(config, "hidden_size", None) or 1
    tokens = 1 if of_head and getattr(config, "is_encoder_decoder", False) else length
    needed = rows * (2 * length * torch.int64.itemsize + tokens * features * dtype.itemsize)
    if whole is not None and needed > whole:
        raise InputError(
            f"{rows} row{'s' * (rows > 1)} of {length:,} tokens, whose results take {needed / GIB:,.1f} GiB",
            f"what fits into the {whole / GIB:,.1f} GiB of {device}",
            "a shorter length",
        )


def check_length(model: Any, inputs: dict[str, Tensor], layout: Layout | None, length: int) -> None:
    """Make the call where a length is beyond what the model says of itself: some models take it, others have a table.

    Args:
        model: a model of transformers.
        inputs, layout: of the call.
        length: of the input, in tokens.

    Raises:
        InputError: the model can't take it.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int) or length <= limit:
        return
    run = Run(model, inputs, layout=layout)
    tried(
        run,
        f"a length of {length:,} tokens, for a {type(model).__name__} with positions for {limit:,}",
        f"{limit:,} or fewer",
    )


def tried(run: Run, given: str, expected: str, hint: str = "") -> list[Any]:
    """Make a run once, nothing being left changed, and return what the model returned.

    Models, kernels and compilers refuse lengths, dtypes and devices only when they run.

    Args:
        run: the run.
        given, expected, hint: what the error says where it fails.

    Raises:
        InputError: it fails, with the reason; too little memory is raised as it is.
    """
    try:
        return run.execute()
    except Exception as error:
        reraise_out_of_memory(error)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{given} ({reason})", expected, hint) from error


def _memory_of(device: torch.device) -> int | None:
    """All the memory of a device, in bytes; None where that can't be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
