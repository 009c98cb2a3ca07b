"""The same prompts with less and with more padding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from forkpoint.comparison import compare
from forkpoint.errors import InputError
from forkpoint.questions.learning import with_labels
from forkpoint.questions.prompts import pad_token_id, padded_run, tokenise
from forkpoint.support.called import says_call
from forkpoint.support.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.questions.choices import PositionIds, Side
    from forkpoint.result import Result
    from forkpoint.support.progress import Progress

USUAL_LENGTH = 50
"""What prompts are padded to if nothing is said, as long as they are shorter."""


@says_call
def padding(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    pad_to: int | None = None,
    side: Side = "right",
    *,
    position_ids: PositionIds = "mask",
    probes: bool = True,
    sources: bool = False,
    backward: bool = False,
    chat_template: bool = False,
    max_memory: int | str | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Compare prompts as they are with the same prompts padded to `pad_to` tokens.

        fp.padding(model, tokenizer, "I've got a lovely bunch of coconuts", pad_to=50, side="left")

    Run A has one row a prompt: `[1, tokens]` without any padding for one prompt, `[prompts, longest]` for
    several, padded to the longest on the same side. Run B has the same rows at `[prompts, pad_to]`.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer; without a pad token, its eos token pads.
        prompts: one text or several.
        pad_to: length in tokens; by default 50, or for prompts that long the next multiple of 8 that leaves
            at least 8 columns of padding.
        side: where the padding goes, `right` or `left`.
        position_ids: `mask` makes position ids from the mask as the architecture does in `generate`; `none`
            leaves them to the model, which may then count the padding.
        probes: whether to look for the cause as well.
        backward: whether to compare gradients, too, with the tokens that both runs have as labels.
        chat_template: put each prompt through the tokenizer's chat template as a user's message.
        sources, max_memory, progress: as in `compare`.

    Raises:
        InputError: an empty prompt, one that is not shorter than `pad_to`, no token to pad with, an unknown side, or not
            a size.
    """
    if position_ids not in ("mask", "none"):
        raise InputError(f"position_ids {position_ids!r}", "mask or none")
    rows = tokenise(model, tokenizer, prompts, chat_template=chat_template)
    longest = max(map(len, rows))
    notes: tuple[str, ...] = ()
    if pad_to is None:
        pad_to = usual_length(longest)
        notes = (f"The length to pad to was not given: {pad_to} was chosen.",)
    if longest >= pad_to:
        raise InputError(
            f"a prompt of {longest} tokens for a padded length of {pad_to}",
            f"{longest + 1} or more",
            f"pad to {usual_length(longest)}, say",
        )
    build = partial(
        padded_run, model, rows, pad=pad_token_id(model, tokenizer), side=side, position_ids=position_ids
    )
    even = all(len(row) == longest for row in rows)
    a = build(length=longest, name="unpadded" if even else f"padded to the longest on the {side}")
    b = build(length=pad_to, name=f"padded on the {side}")
    if backward:
        a, b = with_labels(a, b)
    result = compare(
        a, b, probes=probes, sources=sources, tokenizer=tokenizer, max_memory=max_memory, progress=progress,
        backward=backward,
    )  # fmt: skip
    return replace(result, notes=notes + result.notes)


def usual_length(longest: int) -> int:
    """What to pad to if nothing is said.

    >>> usual_length(15), usual_length(49), usual_length(50), usual_length(56)
    (50, 50, 64, 64)
    """
    return USUAL_LENGTH if longest < USUAL_LENGTH else -(-(longest + 8) // 8) * 8
