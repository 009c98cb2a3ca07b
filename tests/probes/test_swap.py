"""The swap probe: one function, two functions, and what can't be told; what a callable hands over is no function."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
from forkpoint import Run
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.probes.swap import Swap


class Placed(Model):
    """Adds a learned position for each column, or for each given one."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.place = 1, nn.Embedding(32, 13)

    def mix(self, hidden: Tensor, position_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        places = torch.arange(hidden.shape[1])[None] if position_ids is None else position_ids
        return hidden + self.place(places * self.factor)


def copied(model: Placed, factor: int = 1) -> Placed:
    other = twin(model)
    other.factor = factor
    return other


def same(a: Run, b: Run) -> bool | None:
    both = session(a, b)
    found = origin(both, precision(both))
    assert found is not None
    return Swap(both, (found.root,)).same(found.root)


def handing(model: nn.Module, **more: Any) -> Any:
    return lambda **given: model(**given, **more)


PLAIN = batch(ids())
LEFT = batch(ids(), left=2)


def test_a_copy_is_the_same_function() -> None:
    model = Placed()
    assert same(*pair(model, PLAIN, LEFT)) is True
    assert same(*pair(model, PLAIN, LEFT, copied(model))) is True


def test_another_number_is_another_function() -> None:
    model = Placed()
    assert same(*pair(model, PLAIN, PLAIN, copied(model, 2))) is False


@pytest.mark.parametrize("model_b", [Placed.__call__, handing], ids=["partial", "closure"])
def test_positions_that_a_callable_hands_over_are_no_other_function(model_b: Any) -> None:
    model = Placed()
    place = torch.arange(PLAIN["input_ids"].shape[1])[None] + 3
    other = copied(model)
    called = (
        partial(other, position_ids=place) if model_b is not handing else handing(other, position_ids=place)
    )
    assert same(Run(handing(model), PLAIN), Run(called, PLAIN)) is None
    dense = copied(model, 2)
    called = (
        partial(dense, position_ids=place) if model_b is not handing else handing(dense, position_ids=place)
    )
    assert same(Run(handing(model), PLAIN), Run(called, PLAIN)) is False


def test_one_model_called_in_two_ways_is_not_known_to_be_two() -> None:
    model = Placed()

    def dense(model: Any, given: Any) -> Any:
        model.factor = 2
        try:
            return model(**given)
        finally:
            model.factor = 1

    assert same(Run(model, PLAIN), Run(model, PLAIN, call=dense)) is None


def test_a_model_that_does_not_take_the_inputs_is_not_known() -> None:
    model = Placed()
    other = copied(model)
    given = {"ids": LEFT["input_ids"], "mask": LEFT["attention_mask"]}
    layout = fp.Layout.from_mask(LEFT["attention_mask"])
    renamed = Run(lambda ids, mask: other(input_ids=ids, attention_mask=mask), given, layout=layout)
    assert same(Run(model, PLAIN), renamed) is None


def test_what_a_callable_hands_over_is_never_written() -> None:
    model = Placed()
    place = torch.arange(PLAIN["input_ids"].shape[1])[None] + 3
    before = place.clone()
    found = fp.compare(Run(handing(model), PLAIN), Run(handing(copied(model), position_ids=place), PLAIN))
    assert found.verdict.mechanism == "position_ids"
    assert torch.equal(place, before)
    assert not model._forward_pre_hooks
