"""Both runs of a question with labels, so that they return a loss and gradients can be compared."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from forkpoint.errors import InputError
from forkpoint.runs.batches import paired
from forkpoint.runs.layout import MAIN
from forkpoint.runs.modules import innermost
from forkpoint.runs.run import Run

IGNORED = -100
"""The label of what does not enter the loss."""


def with_labels(a: Run, b: Run) -> tuple[Run, Run]:
    """Both runs with each token that they share as its own label, but for the first of a sample, which nothing predicts.

    Padding and rows that one run alone has are left out, so that both losses are means over the same tokens.

    Raises:
        InputError: a run of several calls, whose losses are means over other tokens; a model that takes no labels; no token that is
            predicted.
    """
    if len(a.calls) != 1 or len(b.calls) != 1:
        raise InputError(
            f"gradients of runs of {len(a.calls)} and {len(b.calls)} calls, whose losses are means over other tokens",
            "a question of one call each",
            "fp.compare(a, b, backward=True) takes any runs with their losses",
        )
    pairs = paired(a, b)[2].pairs
    return _labelled(a, {mine for mine, _ in pairs}), _labelled(b, {theirs for _, theirs in pairs})


def _labelled(run: Run, samples: set[int]) -> Run:
    plain = innermost(run.model)[1]
    call, at = run.calls[0], run.layout.calls[0].get(MAIN)
    ids = call.get("input_ids")
    if "labels" not in inspect.signature(plain.forward).parameters or "decoder_input_ids" in call:
        raise InputError(
            f"gradients of a {type(plain).__name__}, to which token ids are no labels",
            "a model that predicts its own tokens",
            "fp.compare(a, b, backward=True) takes any runs with their losses",
        )
    assert isinstance(ids, Tensor) and at is not None
    predicted = torch.isin(at.sample, torch.tensor(sorted(samples))) & (at.position > 0)
    if not predicted.any():
        raise InputError("gradients of samples of 1 token, which nothing predicts", "2 tokens or more")
    labels = torch.where(predicted.to(ids.device), ids, IGNORED)
    return Run(run.model, [{**call, "labels": labels}], layout=run.layout, call=run.call, name=run.name)
