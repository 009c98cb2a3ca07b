"""Fused and split parameters are told from the traces alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import forkpoint as fp
from forkpoint.report.words import Words


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.q(x)) * self.k(x) + self.v(x))


class Fused(nn.Module):
    """The same with one projection, its rows as they are or two of each in turn."""

    def __init__(self, split: Split, *, in_turn: bool = False) -> None:
        super().__init__()
        self.in_turn = in_turn
        self.qkv, self.out = nn.Linear(6, 18), split.out
        for mine, theirs in ((self.qkv.weight, "weight"), (self.qkv.bias, "bias")):
            parts = torch.stack([getattr(m, theirs).data for m in (split.q, split.k, split.v)])
            if in_turn:
                parts = parts.unflatten(1, (3, 2)).transpose(0, 1)
            mine.data = parts.reshape(mine.shape).clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.qkv(x)
        if self.in_turn:
            made = made.unflatten(-1, (3, 3, 2)).transpose(-3, -2).flatten(-3)
        q, k, v = made.split(6, -1)
        return self.out(torch.relu(q) * k + v)


def compared(folder: Path, a: nn.Module, b: nn.Module) -> fp.Result:
    x = torch.ones(1, 3, 6)
    for name, model in (("a", a), ("b", b)):
        with torch.no_grad(), fp.record(folder / name):
            model(x)
    return fp.compare_traces(folder / "a", folder / "b")


def weights(result: fp.Result) -> tuple[str, str]:
    probe = result.verdict.evidence[1]
    return probe.outcome, probe.text


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_fused_projection_has_the_rows_of_its_parts(*, in_turn: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    split = Split()
    fused = Fused(split, in_turn=in_turn)
    for folder, pair in (("one", (split, fused)), ("other", (fused, split))):
        result = compared(tmp_path / folder, *pair)
        assert weights(result) == (
            "same", "2 parameters and buffers are the same in both runs; 8 more have the same rows in other pieces",
        )  # fmt: skip
        note = "parameters matched by their rows: qkv.weight = q.weight + k.weight + v.weight"
        assert note in result.notes
        assert Words("zh").sentence(note) == "按各行对应的参数：qkv.weight = q.weight + k.weight + v.weight。"


@pytest.mark.parametrize("what", ["a row", "a bias"])
def test_a_fused_projection_with_another_row_or_bias_is_not_said_to_be_the_same(
    what: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    split = Split()
    fused = Fused(split)
    with torch.no_grad():
        if what == "a row":
            fused.qkv.weight[7, 0] += 1
        else:
            fused.qkv.bias[7] += 1
    outcome, text = weights(compared(tmp_path, split, fused))
    assert outcome == "unknown"
    assert f"{8 if what == 'a row' else 4} are in one alone" in text
