"""The coupling probe: whether the origin reads what the other run does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.probes.coupling import coupling
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision


class Own(Model):
    """Each token by itself, with a factor that run B may have wrong."""

    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden * (1 + self.by)


class Everything(Own):
    """Takes the mean of all rows and columns away."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden - self.by * hidden.mean((0, 1))


class Counted(Own):
    """Drops tokens by how many of their kind came before them in the batch."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        kind = (hidden.flatten(0, 1).sum(-1) > 0).long()
        place = torch.nn.functional.one_hot(kind, 2).cumsum(0).gather(1, kind[:, None])
        return hidden * (place <= 3).view(*hidden.shape[:2], 1)


def asked(model: Own, a: Any, b: Any) -> bool:
    other = twin(model)
    other.by = 0.5
    both = session(*pair(model, a, b, other))
    found = origin(both, precision(both))
    assert found is not None
    return bool(coupling(both, found))


TOKENS = ids(3)
ALONE = batch(TOKENS[2:])


@pytest.mark.parametrize("b", [batch(TOKENS), batch(TOKENS[2:], left=2), batch(TOKENS[2:], right=2)])
def test_tokens_by_themselves_do_not(b):
    assert not asked(Own(), ALONE, b)
    assert not asked(Own(), b, ALONE)


@pytest.mark.parametrize("b", [batch(TOKENS), batch(TOKENS[2:], left=2), batch(TOKENS[2:], right=2)])
def test_a_mean_of_everything_does(b):
    assert asked(Everything(), ALONE, b)


def test_choices_that_count_other_tokens_do():
    assert asked(Counted(), ALONE, batch(TOKENS))


def test_without_others_there_is_nothing_to_read():
    assert not asked(Everything(), ALONE, ALONE)


def test_what_was_tried_once_is_not_tried_again(monkeypatch):
    model = Everything()
    other = twin(model)
    other.by = 0.5
    both = session(*pair(model, ALONE, batch(TOKENS), other))
    found = origin(both, precision(both))
    assert found is not None
    made = []
    run = type(both.b.run)
    execute = run.execute
    monkeypatch.setattr(run, "execute", lambda *a, **k: made.append(1) or execute(*a, **k))
    first = coupling(both, found)
    ordered, runs = first.ordered(), len(made)
    assert runs
    second = coupling(both, found)
    assert (second.what, second.by, second.moved, second.ordered()) == (
        first.what,
        first.by,
        first.moved,
        ordered,
    )
    assert len(made) == runs
