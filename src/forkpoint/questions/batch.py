"""A row by itself, or among others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkpoint.questions.asking import Options, Question, positions_of, rows_of
from forkpoint.questions.mates import mates, own_mates
from forkpoint.questions.prompts import alone_run, pad_token_id, padded_run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.questions.choices import Side
    from forkpoint.result import Result

SIZE = 8
"""Rows of a batch if nothing is said."""


@says_call
def batch(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    size: int = SIZE,
    *,
    others: Sequence[str] = (),
    same_length: bool = False,
    side: Side = "right",
    **options: Unpack[Options],
) -> Result:
    """Compare prompts by themselves with the same prompts in a batch with others.

        fp.batch(model, tokenizer, "I've got a lovely bunch of coconuts", size=8)

    Run A has one forward call a prompt, `[1, tokens]`, without any padding. Run B has one, `[size, longest]`.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer.
        prompts: one text or several.
        size: rows of the batch; at least as many as there are prompts.
        others: texts that fill it up; by default some that come with forkpoint, of 2 to 80 tokens.
        same_length: cut the others to the length of the longest prompt, or repeat them, so that no padding is needed for
            them.
        side: where padding goes, `right` or `left`.
        options: see `Options`.

    Raises:
        InputError: an empty prompt, a batch smaller than the prompts, no token to pad with.
    """
    return _question(model, tokenizer, prompts, size, others, same_length, side, options).answer(
        tokenizer, options
    )


def _question(
    model: Any, tokenizer: Any, prompts: str | Sequence[str], size: int, others: Sequence[str], same_length: bool,
    side: Side, options: Options,
) -> Question:  # fmt: skip
    rows = rows_of(model, tokenizer, prompts, options)
    given = rows_of(model, tokenizer, others, {}) if others else own_mates(model, tokenizer)
    beside = mates(rows, given, size, same_length=same_length)
    positions = positions_of(options)
    a = alone_run(model, rows, position_ids=positions, name="alone")
    every = [*rows, *beside]
    b = padded_run(
        model, every, max(map(len, every)), pad=pad_token_id(model, tokenizer), side=side, position_ids=positions,
        name=f"in a batch of {size}",
    )  # fmt: skip
    lengths = sorted(map(len, beside))
    notes = () if others or not beside else (
        f"The other rows were not given: {len(beside)} texts of {lengths[0]} to {lengths[-1]} tokens were chosen.",
    )  # fmt: skip
    return Question(a, b, notes)
