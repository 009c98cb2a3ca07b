"""Two dtypes: another for the whole model, or autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import InputError
from forkpoint.models.loading import DTYPES
from forkpoint.questions.asking import Options, Question, copied, one_of, positions_of, rows_of, two_models
from forkpoint.questions.prompts import device_of, together
from forkpoint.runs.modules import innermost
from forkpoint.runs.run import Run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result


@says_call
def dtype(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    against: str | None = None,
    **options: Unpack[Options],
) -> Result:
    """Compare a model with itself in another dtype.

        fp.dtype(model, tokenizer, "I've got a lovely bunch of coconuts", against="float16")

    Both runs are one forward call, `[prompts, longest]`. Run B's model is a copy, so there must be memory for both.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        against: `float32`, `bfloat16`, `float16`, `float64`; by default bfloat16, or float32 where the model is not.
        options: see `Options`.

    Raises:
        InputError: a dtype that isn't one, the model's own, or a model that can't be copied or cast.
    """
    own = dtype_of(model)
    chosen = DTYPES[one_of("dtype", against, list(DTYPES))] if against else _usual(own)
    other = cast_to(model, chosen)
    return two_models(model, other, tokenizer, prompts, (_word(own), _word(chosen)), options)


def cast_to(model: Any, chosen: torch.dtype) -> Any:
    """A copy of a model in another dtype.

    Raises:
        InputError: its own dtype, or a model that can't be copied or cast.
    """
    own = dtype_of(model)
    if chosen == own:
        raise InputError(f"dtype {_word(chosen)} for a model in {_word(own)}", "another one")
    other = copied(model, "another dtype")
    try:
        return other.to(chosen)
    except Exception as error:
        raise InputError(
            f"a {type(model).__name__} that can't be cast: {error}", "a model that is not quantised"
        ) from error


@says_call
def autocast(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    against: str = "bfloat16",
    **options: Unpack[Options],
) -> Result:
    """Compare a model with itself under `torch.autocast`.

    Both runs are one forward call, `[prompts, longest]`, of the one model.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        against: `bfloat16` or `float16`.
        options: see `Options`.

    Raises:
        InputError: another dtype.
    """
    chosen = DTYPES[one_of("dtype", against, ["bfloat16", "float16", "bf16", "fp16"])]
    rows = rows_of(model, tokenizer, prompts, options)
    a = together(model, tokenizer, rows, position_ids=positions_of(options), name=_word(dtype_of(model)))
    device = device_of(innermost(model)[1]).type

    def cast(model: Any, inputs: dict[str, Any]) -> Any:
        with torch.autocast(device, chosen):
            return model(**inputs)

    b = Run(model, list(a.calls), layout=a.layout, call=cast, name=f"autocast to {_word(chosen)}")
    return Question(a, b).answer(tokenizer, options)


def dtype_of(model: Any) -> torch.dtype:
    """The dtype of a model's floating-point weights."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)


def _usual(own: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if own in (torch.float32, torch.float64) else torch.float32


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
