"""The rotation probe: what a rotary table does to queries and keys, against what only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.bench import benches
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.probes.rotation import rotary_table


class ByLength(Model):
    """Attention whose angles depend on the length of the row."""

    def __init__(self) -> None:
        super().__init__(width=12)

    def angles(self, hidden: Tensor) -> Tensor:
        angles = torch.arange(hidden.shape[1])[:, None] * (0.1 * hidden.shape[1]) ** -torch.arange(6)
        return torch.cat([angles, angles], -1)

    def turned(self, hidden: Tensor) -> Tensor:
        angles = self.angles(hidden)
        first, second = hidden.chunk(2, -1)
        return hidden * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        assert attention_mask is not None
        scores = self.turned(hidden) @ self.turned(hidden).mT
        return hidden + scores.masked_fill(attention_mask[:, None] == 0, -1e9).softmax(-1) @ hidden


class Added(ByLength):
    def turned(self, hidden: Tensor) -> Tensor:
        return hidden + self.angles(hidden).cos() + self.angles(hidden).sin()


class Faded(ByLength):
    """Multiplied by both, and shorter for it."""

    def turned(self, hidden: Tensor) -> Tensor:
        return hidden * self.angles(hidden).cos() + 0.5 * hidden * self.angles(hidden).sin()


class Unmet(ByLength):
    """Turned, but no queries meet keys."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return self.turned(hidden)


def table(model: Model) -> int | None:
    tokens = ids(1, 6)
    both = session(*pair(model, batch(tokens), batch(tokens, right=3)))
    found = origin(both, precision(both))
    assert found is not None
    return rotary_table(next(bench for bench in benches(both, found) if bench.side == "a"))


def test_a_table_by_which_queries_and_keys_are_turned_is_found():
    assert table(ByLength()) is not None


@pytest.mark.parametrize("model", [Added, Faded, Unmet])
def test_what_looks_like_one_is_not(model):
    assert table(model()) is None
