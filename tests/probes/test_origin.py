"""The patch probe: where something other than rounding enters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.probes.origin import Origin, origin
from forkpoint.probes.precision import precision


def asked(model: Model, a: Any, b: Any, other: Model | None = None) -> Origin | None:
    both = session(*pair(model, a, b, other))
    return origin(both, precision(both))


class Two(Model):
    """Two places at which something may enter; the first may cancel."""

    cancels = False
    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        columns = torch.arange(hidden.shape[1])[:, None] * 0.5
        hidden = hidden + columns
        if self.cancels:
            hidden = hidden - columns
        return (hidden * (1 + self.by)).sin()


def test_what_cancels_is_not_the_origin():
    model = Two()
    model.cancels = True
    other = twin(model)
    other.by = 0.25
    found = asked(model, batch(ids()), batch(ids(), left=2), other)
    assert found is not None
    assert (found.root.a.op.name, found.seen.a.op.name) == ("(model)/mul", "(model)/mul")
    assert found.closes > 0.99
    assert found.result.outcome == "closes"
    assert found.result.text.startswith("with run A's value put in place at (model)/mul (test_origin.py:")


def test_an_integer_that_does_not_cancel_is_the_root_and_shows_in_a_float():
    found = asked(Two(), batch(ids()), batch(ids(), left=2))
    assert found is not None
    assert found.root.a.op.name == "(model)/arange"
    assert found.seen.a.value.dtype.is_floating_point
    assert f"it shows first in {found.seen.a.op.name}" in found.result.text


def test_the_last_of_several_rounding_ops_is_not_taken_for_it():
    class Late(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            for _ in range(3):
                hidden = hidden * 1.1
            return hidden + F.pad(hidden, (0, 0, 1, -1))

    found = asked(Late(), batch(ids()), batch(ids(), left=1))
    assert found is not None
    assert found.seen.a.op.function in ("add", "pad")


def test_runs_that_do_not_differ_have_no_origin():
    assert asked(Two(), batch(ids()), batch(ids())) is None
