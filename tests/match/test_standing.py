"""A row's one value: of another column it stands for the row, of a token that one run alone has it does not."""

from __future__ import annotations

import torch
from tests.architectures import ARCHITECTURES, prompt

import forkpoint as fp
from forkpoint import Run, VerdictKind

ROW = prompt(5)


def last(row: list[int]) -> dict[str, object]:
    return {"input_ids": torch.tensor([row]), "logits_to_keep": 1}


def test_the_last_token_of_a_longer_prompt_is_another_token() -> None:
    model = ARCHITECTURES["llama"].build()
    result = fp.compare(Run(model, last(ROW)), Run(model, last([*ROW, 7])))
    assert result.verdict.kind is VerdictKind.UNDETERMINED
    assert "no result could be compared" in result.verdict.summary


def test_the_wrong_token_of_the_same_prompt_stands_for_it() -> None:
    """The sound twin: what is taken in its place is padding."""
    model = ARCHITECTURES["llama"].build()
    padded = {
        "input_ids": torch.tensor([[*ROW, 0]]),
        "attention_mask": torch.tensor([[1] * len(ROW) + [0]]),
        "logits_to_keep": 1,
    }
    verdict = fp.compare(Run(model, last(ROW)), Run(model, padded)).verdict
    assert (verdict.kind, verdict.mechanism) == (VerdictKind.SEMANTIC, "pooling")
