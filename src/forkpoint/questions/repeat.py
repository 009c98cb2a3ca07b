"""The same run twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkpoint.questions.asking import Options, Question, positions_of, rows_of
from forkpoint.questions.prompts import together
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result


@says_call
def repeat(model: Any, tokenizer: Any, prompts: str | Sequence[str], **options: Unpack[Options]) -> Result:
    """Compare a run with itself, made again: is it reproducible?

    Several prompts are one batch, `[prompts, longest]`, padded on the right.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        options: see `Options`.

    Raises:
        InputError: an empty prompt, or no token to pad with.
    """
    rows = rows_of(model, tokenizer, prompts, options)
    a, b = (
        together(model, tokenizer, rows, position_ids=positions_of(options), name=name)
        for name in ("once", "again")
    )
    return Question(a, b).answer(tokenizer, options)
