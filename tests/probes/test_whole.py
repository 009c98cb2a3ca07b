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
    "times": lambda x: torch.arange(x.shape[1]) * torch.ones(1, dtype=x.dtype),
    "times, from the left": lambda x: torch.ones(1, dtype=x.dtype) * torch.arange(x.shape[1]),
    "plus": lambda x: torch.zeros(1, dtype=x.dtype) + torch.arange(x.shape[1]),
    "minus": lambda x: torch.arange(x.shape[1]) - torch.zeros(1, dtype=x.dtype),
    "by": lambda x: torch.arange(x.shape[1]) / torch.ones(1, dtype=x.dtype),
    "outer": lambda x: torch.outer(torch.arange(x.shape[1]), torch.ones(1, dtype=x.dtype))[:, 0],
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


@pytest.mark.parametrize("columns", [256, 300])
def test_what_a_mixed_product_makes_of_the_integers_alone_is_asked(columns: int):
    """In both runs the product is rounded to bfloat16; the integers collapse in one, and from 257 of them on."""
    speeds = torch.tensor([0.37], dtype=torch.bfloat16)
    found = asked(
        lambda x: (torch.arange(x.shape[1]).float() * speeds.float()).to(x.dtype),
        lambda x: torch.arange(x.shape[1]) * speeds,
        columns,
    )
    if columns == 256:
        assert found is None
    else:
        assert found is not None
        assert found.moves
        assert "300 whole numbers become 279 in bfloat16 at (model)/mul" in found.text
        assert found.result.figure < 3, "an angle moves by 0.37 at most"


def test_bools_and_integers_that_are_no_range_do_not_collapse():
    chosen = torch.randint(0, 10_000, (300,), generator=torch.Generator().manual_seed(0))
    assert asked(lambda _: chosen.float(), lambda x: chosen * torch.ones(1, dtype=x.dtype)) is None
    assert asked(exact, lambda x: torch.arange(x.shape[1]) + (chosen > 0) * torch.zeros(1).double()) is None


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
