"""Against autograd itself: which gradient differs first, where, by how much, and which parameters' gradients do."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.backward.models import IDS, Sound, Wrong, planted, tiny
from tests.backward.oracle import gradients

import forkpoint as fp
from forkpoint.native import choice

PLACES = ["layers.0", "layers.1", "layers.2.inner", "head"]


@pytest.fixture(params=["as compiled", "Python"])
def implementation(request):
    if request.param == "as compiled":
        yield
        return
    with choice.python_alone():
        yield


def compared(a, b, inputs, **options):
    runs = (fp.Run(model, inputs) for model in (a, b))
    return fp.compare(*runs, backward=True, **options)


def check(a, b, inputs):
    """What forkpoint says is what autograd says."""
    result = compared(a, b, inputs, probes=False)
    one, other = gradients(a, inputs), gradients(b, inputs)
    differing = [
        i for i, (x, y) in enumerate(zip(one.values, other.values, strict=True)) if not torch.equal(x, y)
    ]
    named = {name for name, value in one.parameters.items() if not torch.equal(value, other.parameters[name])}
    assert {g.name for g in result.backward.parameters if g.status == "differs"} == named
    assert {g.name for g in result.backward.parameters} == one.parameters.keys()
    first = result.first_backward
    assert (first is None) == (not differing)
    if first is not None:
        x, y = one.values[differing[-1]], other.values[differing[-1]]
        assert first.shape_a == tuple(x.shape)
        assert (first.value_a, first.value_b) == (float(x[first.index_a]), float(y[first.index_b]))
        assert first.differing == int((x != y).sum()) and first.compared == x.numel()
        assert first.max_abs == float((x.double() - y.double()).abs().max())
    return result


@pytest.mark.parametrize("path", PLACES)
def test_a_wrong_backward_is_found_where_autograd_has_it(path, implementation):
    inputs = {"input_ids": IDS, "labels": IDS}
    a = planted(tiny(), path, Sound)
    result = check(a, planted(tiny(), path, Wrong), inputs)
    assert not result.backward.identical
    check(a, planted(tiny(), path, Sound), inputs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_in_real_architectures(name):
    architecture = ARCHITECTURES[name]
    model = architecture.build(attention="eager")
    rows = [[5, 6, 7, 8], [9, 10, 11, 12]]
    inputs = {**architecture.inputs(rows), "labels": torch.tensor(rows)}
    leaves = [path for path, module in model.named_modules() if not list(module.children())]
    weighted = [
        path for path in leaves if getattr(model.get_submodule(path), "weight", torch.ones(1)).dim() == 2
    ]
    path = weighted[len(weighted) // 2]
    check(planted(model, path, Sound), planted(model, path, Wrong), inputs)


def test_where_no_gradient_arrives_it_is_zero(implementation):
    result = check(tiny(), tiny("cut"), {"input_ids": IDS, "labels": IDS})
    assert result.first_backward.note == "no gradient arrives in run B"
    assert result.first_backward.value_b == 0.0
