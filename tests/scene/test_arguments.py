"""The arguments of a call as JSON."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import SceneError
from forkpoint.scene.format.arguments import (
    Ref,
    filled,
    from_json,
    refs_in,
    tensors_in_order,
    to_json,
    with_refs,
)

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.builds(Ref, st.integers(0, 5)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]),
    st.sampled_from([torch.contiguous_format, torch.channels_last, torch.strided]),
    st.just(Ellipsis),
    st.just(torch.device("cpu")),
    st.builds(torch.Size, st.lists(st.integers(0, 9), max_size=3)),
    st.builds(slice, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9), st.none() | st.integers(1, 3)),
    st.complex_numbers(allow_nan=False),
)  # fmt: skip
ARGUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=8,
)


@given(ARGUMENTS)
def test_round_trip(value):
    assert from_json(json.loads(json.dumps(to_json(value), allow_nan=False))) == value


def test_nan():
    found = from_json(to_json(float("nan")))
    assert found != found


def test_tensors_become_references_and_come_back():
    x, y = torch.zeros(2), torch.ones(3)
    value = ((x, [y, 1]), {"index": (slice(0, 2), y), "other": x})
    known = {id(x): 0, id(y): 1}
    refs = with_refs(value, lambda tensor: known[id(tensor)])
    assert refs == ((Ref(0), [Ref(1), 1]), {"index": (slice(0, 2), Ref(1)), "other": Ref(0)})
    assert refs_in(refs) == [0, 1, 1, 0]
    assert [id(t) for t in tensors_in_order(value)] == [id(x), id(y), id(y), id(x)]
    back = filled(refs, [x, y], torch.device("cpu"))
    assert back[0][0] is x
    assert back[1]["index"][1] is y


def test_a_device_becomes_the_one_of_the_replay():
    assert filled((torch.device("cpu"),), [], torch.device("cuda")) == (torch.device("cuda"),)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (len, "an argument of type builtins.builtin_function_or_method"),
        (torch.Generator(), "an argument of type torch._C.Generator"),
        (torch.sparse_coo, "an argument of type torch.layout"),
    ],
)
def test_what_a_scene_cant_hold(value, complaint):
    with pytest.raises(SceneError, match=complaint):
        to_json(value)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"pickle": "x"}, "the argument"),
        ({"tensor": -1}, "a reference to tensor -1"),
        ({"tensor": True}, "a reference to tensor True"),
        ({"tensor": 0, "dtype": "float32"}, "the argument"),
        ({"dtype": "load"}, "the dtype 'load'"),
        ({"dtype": "nn.Module"}, "the dtype 'nn.Module'"),
        ({"device": "cuda; import os"}, "the device"),
        ({"float": "1e3"}, "the float '1e3'"),
        ({"size": [-1]}, "the size"),
        ({"slice": [1, 2]}, "a slice written as"),
        ({"memory_format": "load"}, "the memory format 'load'"),
        ({"dict": [["a"]]}, "a dict entry written as"),
        ({"dict": [[1, 2]]}, "the key 1"),
        ({"complex": ["a", 1]}, "the complex number"),
        (1 << 80, "an argument of 25 digits"),
        ([[[[[[[[[[1]]]]]]]]]], "nested more than 8 deep"),
    ],
)
def test_what_is_no_argument(value, complaint):
    with pytest.raises(SceneError, match=complaint):
        from_json(value)
