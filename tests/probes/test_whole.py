"""The whole-numbers probe: positions that collapse in a narrow dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.joined import session
from torch import Tensor, nn

from forkpoint import Run
from forkpoint.explain.session import Traced
from forkpoint.probes.precision import precision
from forkpoint.probes.whole import Whole, whole_numbers


class Positioned(nn.Module):
    """Adds a wave of the positions to its input, [rows, columns, 4] in bfloat16."""

    def __init__(self, positions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.bfloat16)
        self.positions = (positions,)

    def forward(self, x: Tensor) -> Tensor:
        wave = (self.positions[0](x).float() / 3).sin()
        return self.linear(x + wave[:, None].expand(-1, 4).to(x.dtype))


def exact(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "to": lambda x: torch.arange(x.shape[1]).to(x.dtype),
    "bfloat16": lambda x: torch.arange(x.shape[1]).bfloat16(),
    "type_as": lambda x: torch.arange(x.shape[1]).type_as(x),
    "of floats": lambda x: torch.arange(x.shape[1]).float().to(torch.bfloat16),
    "arange": lambda x: torch.arange(x.shape[1], dtype=x.dtype),
    "half": lambda x: (16 * torch.arange(x.shape[1])).half(),
}


def asked(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor], columns: int = 300) -> Whole | None:
    torch.manual_seed(0)
    first = Positioned(a)
    second = copy.deepcopy(first)
    second.positions = (b,)
    x = torch.randn(1, columns, 4, dtype=torch.bfloat16)
    both = session(Run(first, {"x": x}), Run(second, {"x": x}))
    return whole_numbers(both, precision(both))


@pytest.mark.parametrize("name", [name for name in WAYS if name != "half"])
def test_positions_that_collapse_in_one_run(name):
    found = asked(exact, WAYS[name])
    assert found is not None
    assert (found.moves, found.result.outcome) == (True, "collapse")
    assert found.text.startswith("300 whole numbers become 279 in bfloat16 at (model)/")
    assert found.text.endswith("in run B")


def test_numbers_that_float16_tells_apart_do_not_collapse():
    assert asked(lambda x: 16 * torch.arange(x.shape[1]), WAYS["half"]) is None, "4,784 is a multiple of 16"
    assert asked(exact, WAYS["to"], 256) is None
    assert asked(exact, exact) is None


def test_what_collapses_alike_in_both_runs_moves_nothing():
    found = asked(WAYS["to"], WAYS["bfloat16"])
    assert found is not None
    assert (found.moves, found.result.outcome, found.result.figure) == (False, "alike", 0.0)


def test_values_that_are_no_range_may_be_rounded():
    numbers = torch.randint(0, 10_000, (300,), generator=torch.Generator().manual_seed(0))
    assert asked(lambda _: numbers.float(), lambda _: numbers.to(torch.bfloat16)) is None


def test_no_run_is_made_where_nothing_can_collapse(monkeypatch):
    made: list[str] = []
    again = Traced.again
    monkeypatch.setattr(Traced, "again", lambda *args, **kwargs: made.append("") or again(*args, **kwargs))
    assert asked(exact, exact) is None
    assert not made
