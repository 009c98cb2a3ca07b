"""Several samples, each by itself or one after the other in one row."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import InputError
from forkpoint.questions.asking import Options, Question, positions_of, rows_of
from forkpoint.questions.mates import TEXTS
from forkpoint.questions.prompts import alone_run, device_of
from forkpoint.runs.modules import innermost
from forkpoint.runs.run import Run
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result

BESIDE = 2
"""Samples that stand in the row with a single prompt."""


@says_call
def packed(model: Any, tokenizer: Any, prompts: str | Sequence[str], **options: Unpack[Options]) -> Result:
    """Compare prompts by themselves with the same prompts packed into one row, without padding.

        fp.packed(model, tokenizer, ["I've got a lovely bunch of coconuts", "There they are"])

    Run A has one forward call a prompt, `[1, tokens]`. Run B has one, `[1, all tokens]`, whose `position_ids` begin again
    at 0 with each prompt; a model of transformers tells the samples by them, if it gets neither mask nor cache.

    Args:
        model: a model of transformers that takes position ids.
        tokenizer: its tokenizer.
        prompts: one text or several; a single one stands first, before two texts that come with forkpoint.
        options: see `Options`.

    Raises:
        InputError: an empty prompt, or a model that takes no position ids.
    """
    if positions_of(options) == "none":
        raise InputError("packed samples without position ids", "position ids, by which they are told apart")
    rows = rows_of(model, tokenizer, prompts, options)
    notes: tuple[str, ...] = ()
    if len(rows) == 1:
        rows += rows_of(model, tokenizer, TEXTS[:BESIDE], {})
        notes = (f"The samples behind the prompt were not given: {BESIDE} texts were chosen.",)
    takes = inspect.signature(innermost(model)[1].forward).parameters
    if "position_ids" not in takes:
        raise InputError(
            f"a {type(model).__name__}, which takes no position ids",
            "a model that can tell packed samples apart",
        )
    device = device_of(innermost(model)[1])
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.tensor([[at for row in rows for at in range(len(row))]], device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
    if "use_cache" in takes:
        inputs["use_cache"] = False  # with a cache transformers does not look for several samples
    a = alone_run(model, rows, name="alone")
    return Question(a, Run(model, inputs, name="packed"), notes).answer(tokenizer, options)
