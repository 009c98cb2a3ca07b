"""Other rows for a batch: texts of many lengths, the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError
from forkpoint.questions.prompts import counting_padding_idx, tokenise
from forkpoint.runs.modules import innermost

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = (
    "The harbour was quiet.",
    "Rain again.",
    "Nobody had told the gardener that the roses were to be moved, so he left them and went on with the hedge.",
    "A train that stops at every village takes twice as long, and shows you twice as much.",
    (
        "She counted the coins once more, wrote the sum into the book, closed it, and looked out of the window at the "
        "boats, which were coming in one after the other with their lamps already lit although the sun had not gone "
        "down, and thought of the letter that she would have to answer before the post left in the morning."
    ),
    "Water boils at a lower temperature on a mountain than by the sea.",
    "Two and two are four, and four and four are eight; the rest can be worked out from there.",
)
"""What stands beside a prompt where nobody says otherwise."""


def own_mates(model: Any, tokenizer: Any, more: int = 0) -> list[list[int]]:
    """Token ids of `TEXTS`, each cut to what the model has positions for.

    Args:
        model, tokenizer: of transformers.
        more: tokens that are to come behind each.
    """
    rows = tokenise(model, tokenizer, TEXTS)
    limit = getattr(getattr(innermost(model)[1], "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return rows
    first = counting_padding_idx(innermost(model)[1])  # RoBERTa counts from the one behind it
    room = limit - more - (0 if first is None else first + 1)
    return [row[: max(1, room)] for row in rows]


def mates(
    rows: Sequence[Sequence[int]], others: Sequence[Sequence[int]], size: int, *, same_length: bool
) -> list[list[int]]:
    """Rows of token ids to fill a batch with.

    Args:
        rows: the rows that are there already.
        others: rows to take, in turn.
        size: rows of the whole batch.
        same_length: make each as long as the longest row, cut off or begun anew, so that nothing is padded on their account.

    Raises:
        InputError: the batch is smaller than the rows that it must hold.
    """
    if size < len(rows) or size < 2:
        raise InputError(
            f"a batch of {size} for {len(rows)} prompt{'s' * (len(rows) > 1)}", f"{max(2, len(rows))} or more"
        )
    added: list[list[int]] = []
    for number in range(size - len(rows)):
        row = list(others[number % len(others)])
        if number >= len(others):  # again: begun at another token, so that no two rows are the same
            turn = number // len(others) % len(row)
            row = row[turn:] + row[:turn]
        if same_length:
            length = max(map(len, rows))
            row = (row * (length // len(row) + 1))[:length]
        added.append(row)
    return added
