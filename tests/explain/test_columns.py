"""What goes into a run, column by column."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import forkpoint as fp
from forkpoint.explain import columns
from forkpoint.explain.columns import input_rows


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.embed(input_ids) + 0.0


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        if ids[0] > 5:
            raise OverflowError("no such id")
        return f"<{ids[0]}>"


def run(ids: list[list[int]], mask: list[list[int]]) -> fp.Run:
    return fp.Run(Embedding(), {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def test_padding_and_tokens() -> None:
    rows = input_rows(run([[0, 1, 2], [3, 4, 0]], [[0, 1, 1], [1, 1, 0]]), lambda s, p: f"{s}.{p}")
    assert [(row.call, row.row, row.width) for row in rows] == [(0, 0, 3), (0, 1, 3)]
    assert rows[0].columns == ((None, None, None), (0, 0, "0.0"), (0, 1, "0.1"))
    assert rows[1].columns == ((1, 0, "1.0"), (1, 1, "1.1"), (None, None, None))


def test_a_call_of_no_columns_has_no_rows() -> None:
    empty = torch.zeros(2, 0, dtype=torch.int64)
    given = fp.Run(Embedding(), {"input_ids": empty}, layout=fp.Layout([fp.Coordinates(empty, empty)]))
    assert input_rows(given, lambda s, p: None) == ()


def test_of_very_many_columns_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_COLUMNS", 4)
    rows = input_rows(run([[0, 1, 2]] * 3, [[1, 1, 1]] * 3), lambda s, p: None)
    assert [(row.width, len(row.columns)) for row in rows] == [(3, 3), (3, 1)]


def test_a_result_has_them_with_their_texts(tmp_path) -> None:
    model = Embedding()
    a = fp.Run(model, {"input_ids": torch.tensor([[1, 7]])})
    b = fp.Run(model, {"input_ids": torch.tensor([[0, 1, 7]]), "attention_mask": torch.tensor([[0, 1, 1]])})
    result = fp.compare(a, b, tokenizer=Tokenizer(), probes=False)
    assert [row.columns for row in result.a.rows] == [((0, 0, "<1>"), (0, 1, None))]
    assert [row.columns for row in result.b.rows] == [((None, None, None), (0, 0, "<1>"), (0, 1, None))]
    result.to_json(tmp_path / "result.json")
    assert fp.Result.from_json(tmp_path / "result.json").b.rows == result.b.rows
