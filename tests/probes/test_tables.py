"""Tables that were rounded when a model was made: what they make is told from a fault, however small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.probes.tables import tables_of


class Waves(nn.Module):
    """Multiplies by a table of sines, kept or made anew in each call; `more` is a fault."""

    def __init__(self, kept: bool, more: float = 0.0, held: str = "buffer") -> None:
        super().__init__()
        self.kept, self.more = kept, more
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 6, generator=generator))
        table = self.made(torch.float64).float()
        if held == "buffer" and kept:
            self.register_buffer("table", table)
        elif held == "list" and kept:
            self.tables = [{"sines": table}]
        elif kept:
            self.turns = torch.complex(table, torch.zeros_like(table))
        self.held = held

    def made(self, dtype: torch.dtype) -> Tensor:
        return (torch.arange(9)[:, None].to(dtype) / 7.3 ** torch.arange(6).to(dtype)).sin()

    def forward(self, x: Tensor) -> Tensor:
        if not self.kept:
            table = self.made(x.dtype)
        elif self.held == "buffer":
            table = self.table
        else:
            table = self.tables[0]["sines"] if self.held == "list" else self.turns.real
        return (x * (table[: x.shape[1]] + self.more)) @ self.weight


def compared(a: nn.Module, b: nn.Module) -> fp.Result:
    x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
    return fp.compare(fp.Run(a, {"x": x}), fp.Run(b, {"x": x}))


@pytest.mark.parametrize("held", ["buffer", "list", "complex"])
def test_a_table_that_one_model_keeps_and_the_other_makes_is_rounding(held: str):
    result = compared(Waves(kept=True, held=held), Waves(kept=False))
    assert result.verdict.kind is fp.VerdictKind.ROUNDING, str(result)
    assert "tables" in {found.name for found in result.verdict.evidence}


def test_what_is_beyond_that_is_none():
    result = compared(Waves(kept=True), Waves(kept=False, more=3e-6))
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
    assert "tables" not in {found.name for found in result.verdict.evidence}


def test_tables_are_what_a_model_holds_beside_its_parameters_if_they_are_rounded():
    assert [t.dtype for t in tables_of(Waves(kept=True, held="complex"))] == [torch.complex64]
    exact = nn.Module()
    exact.register_buffer("mask", torch.tril(torch.ones(4, 4)))
    exact.register_buffer("whole", torch.arange(5))
    exact.parameter = nn.Parameter(torch.randn(3))
    assert tables_of(exact) == []
