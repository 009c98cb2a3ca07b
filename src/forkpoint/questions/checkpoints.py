"""Two checkpoints: another revision, a fine-tuned child, a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forkpoint.errors import InputError
from forkpoint.questions.asking import Options, rows_of, two_models
from forkpoint.runs.modules import embeddings_of, innermost
from forkpoint.support.called import says_call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from forkpoint.result import Result

SHOWN = 3
"""Parameters that are named."""


@says_call
def checkpoints(
    model: Any,
    tokenizer: Any,
    other: Any,
    other_tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    names: tuple[str, str] = ("first model", "second model"),
    **options: Unpack[Options],
) -> Result:
    """Compare two models that should be, or began as, the same.

    Both runs are one forward call, `[prompts, longest]`, on the token ids of the first model's tokenizer. What is not
    the same before they run is said first: the class, the tokenizer, the vocabulary, the weights.

    Args:
        model, other: two models of transformers.
        tokenizer, other_tokenizer: their tokenizers.
        prompts: one text or several.
        names: what reports call the models.
        options: see `Options`.

    Raises:
        InputError: an empty prompt, or token ids that the second model does not know.
    """
    rows = rows_of(model, tokenizer, prompts, options)
    rows_known(other, rows)
    notes = (*unlike(model, tokenizer, other, other_tokenizer, prompts, options), *weights(model, other))
    return two_models(model, other, tokenizer, prompts, names, options, notes)


def unlike(
    model: Any,
    tokenizer: Any,
    other: Any,
    other_tokenizer: Any,
    prompts: str | Sequence[str],
    options: Options,
) -> list[str]:
    """In what two models are not of one kind, a sentence each: their classes, and what their tokenizers make of prompts.

    Raises:
        InputError: an empty prompt.
    """
    rows = rows_of(model, tokenizer, prompts, options)
    said: list[str] = []
    plain, theirs_plain = innermost(model)[1], innermost(other)[1]
    if type(plain) is not type(theirs_plain):
        said.append(
            f"The models are of two classes: {type(plain).__name__} and {type(theirs_plain).__name__}."
        )
    try:
        theirs = rows_of(other, other_tokenizer, prompts, options)
    except InputError:
        theirs = []
    if theirs != rows:
        said.append(
            "The second model's tokenizer makes other token ids of the prompts; the first one's were used."
        )
    return said


def rows_known(model: Any, rows: list[list[int]]) -> None:
    """Check that a model has embeddings for token ids.

    Raises:
        InputError: it has not.
    """
    vocabulary = getattr(embeddings_of(model), "num_embeddings", None)
    largest = max(map(max, rows))
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"token id {largest}, for a second model with embeddings for {vocabulary} tokens",
            "two models of one vocabulary",
        )


def weights(model: Any, other: Any) -> list[str]:
    """How the parameters of two models differ, in a sentence or two."""
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    common = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    said: list[str] = []
    if len(common) < max(len(mine), len(theirs)):
        said.append(
            f"{len(common)} parameters have one name and shape in both models, of {len(mine)} and {len(theirs)}."
        )
    changes = {name: _change(mine[name], theirs[name]) for name in common}
    changed = sorted((name for name in changes if changes[name] > 0), key=lambda name: -changes[name])
    if changed:
        most = ", ".join(f"{name} ({100 * changes[name]:.2g} %)" for name in changed[:SHOWN])
        said.append(
            f"{len(changed)} of {len(common)} parameters differ, relative to their size most: {most}."
        )
    return said


def _change(a: Tensor, b: Tensor) -> float:
    """The norm of the difference over the norm of the first."""
    if a.dtype == b.dtype and torch.equal(a.detach().cpu(), b.detach().cpu()):
        return 0.0
    wide, other = a.detach().cpu().double(), b.detach().cpu().double()
    return float((wide - other).norm() / wide.norm().clamp_min(torch.finfo(torch.float64).tiny))
