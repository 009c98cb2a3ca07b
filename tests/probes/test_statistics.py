"""The statistics probe: a normalisation by a mean, or a mean and a variance, against all else that is taken over others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.coupling import coupling
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.probes.statistics import MEAN, NORMALISED, statistics

TOKENS = ids(5)
MATES, PADDED = (batch(TOKENS[4:]), batch(TOKENS)), (batch(TOKENS[4:]), batch(TOKENS[4:], right=3))


def asked(function: Callable[[Tensor], Tensor], a: dict[str, Tensor], b: dict[str, Tensor]) -> str | None:
    class Mixed(Model):
        def mix(self, hidden: Tensor, **inputs: Tensor) -> Tensor:
            return function(hidden)

    both = session(*pair(Mixed(), a, b))
    found = origin(both, precision(both))
    assert found is not None
    coupled = coupling(both, found)
    assert coupled
    return statistics(coupled)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h - h.mean(0),
        lambda h: F.batch_norm(h.mT, None, None, training=True).mT,
        lambda h: (h - h.mean(0)) * (h.var(0, unbiased=False) + 1e-5).rsqrt(),
    ],
)
def test_a_mean_and_a_variance_of_the_rows_do(function):
    assert asked(function, *MATES) == NORMALISED


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h + h.softmax(0),
        lambda h: h - h.amax(0),
        lambda h: F.normalize(h, dim=0),
        lambda h: h * h.mean(0).sigmoid(),
        lambda h: (h - h.amin(0)) / (h.amax(0) - h.amin(0) + 1e-9),
    ],
)
def test_nothing_else_over_the_rows_does(function):
    assert asked(function, *MATES) is None


def test_a_norm_over_columns_does():
    assert asked(lambda h: F.instance_norm(h.mT).mT, *PADDED) == NORMALISED
    assert asked(lambda h: F.layer_norm(h, h.shape[1:]), *PADDED) == NORMALISED


def test_a_mean_that_is_added_is_one_and_normalises_nothing():
    assert asked(lambda h: h + h.mean(1, keepdim=True), *PADDED) == MEAN
    assert asked(lambda h: h + h.mean(0), *MATES) == MEAN


def test_a_length_over_columns_does_not():
    assert not asked(lambda h: F.normalize(h, dim=1), *PADDED)
    assert not asked(lambda h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True)), *PADDED)
