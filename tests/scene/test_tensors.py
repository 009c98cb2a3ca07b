"""Tensors as they lie in memory: packed, written, read and laid out again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format.tensors import (
    Packer,
    Storage,
    TensorLayout,
    check_layout,
    content_hash,
    materialise,
    placement,
    restored,
    storable,
)
from forkpoint.support.equality import same_bits

CPU = torch.device("cpu")
DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64,
    torch.complex128, torch.float8_e5m2, torch.uint16,
)  # fmt: skip


def round_trip(*tensors: Tensor) -> list[Tensor]:
    """The same tensors, laid out anew."""
    packer = Packer()
    places = [placement(t) for t in tensors]
    names = [f"t{i}" for i in range(len(tensors))]
    numbers = packer.add(tensors, places, names, [None] * len(tensors))
    data = [restored(storable(d), s.dtype) for d, s in zip(packer.data, packer.storages, strict=True)]
    for layout in packer.layouts:
        check_layout(layout, packer.storages)
    made = materialise(packer.layouts, numbers, data, CPU, "cpu")
    return [made[number] for number in numbers]


def assert_same(a: Tensor, b: Tensor) -> None:
    assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    assert a.data_ptr() % 64 == b.data_ptr() % 64 or not a.numel()
    a = a.resolve_conj().resolve_neg()
    if a.dtype.itemsize == 1 and a.is_floating_point():
        a, b = a.float(), b.float()
    assert same_bits(a, b)


def numbers(size: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint16:
        return torch.arange(size).to(dtype)
    return (torch.randn(size, dtype=torch.float64) * 3).to(dtype)


@st.composite
def views(draw) -> Tensor:
    """A view of random shape: sliced with steps, transposed, expanded, offset, or without elements."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    lead = draw(st.integers(0, 9))
    size = lead + max(1, torch.Size([n * s for n, s in zip(shape, steps, strict=True)]).numel())
    base = numbers(size, dtype)[lead:]
    whole = base[: torch.Size([n * s for n, s in zip(shape, steps, strict=True)]).numel()]
    view = whole.reshape([n * s for n, s in zip(shape, steps, strict=True)])
    for d, step in enumerate(steps):
        view = view[(slice(None),) * d + (slice(None, None, step),)]
    if draw(st.booleans()):
        view = view.permute(draw(st.permutations(range(view.dim()))))
    if draw(st.booleans()):
        view = view.unsqueeze(0).expand(draw(st.integers(0, 3)), *view.shape)
    return view


@settings(max_examples=150)
@given(views())
def test_any_view_survives(view):
    assert_same(view, round_trip(view)[0])


@settings(max_examples=40)
@given(st.lists(views(), min_size=2, max_size=4))
def test_several_views_survive(several):
    for before, after in zip(several, round_trip(*several), strict=True):
        assert_same(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    value = numbers(6, dtype).view(2, 3).t()
    assert_same(value, round_trip(value)[0])


@pytest.mark.parametrize(
    "view",
    [
        torch.tensor(3.5),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.randn(8)[3:3],
        torch.randn(4, 4)[1:, ::2],
        torch.randn(3).expand(4, 3),
        torch.randn(()).expand(2, 2),
        torch.randn(10).unfold(0, 4, 1),
        torch.randn(1, 1, 5).expand(2, 0, 5),
        torch.randn(6, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).imag,
    ],
    ids=["scalar", "empty", "no rows", "no elements", "steps", "expanded", "one number", "windows", "expanded to none",
         "conjugate", "imaginary part"],
)  # fmt: skip
def test_views_of_every_kind(view):
    assert_same(view, round_trip(view)[0])


def test_views_of_one_memory_share_it_again():
    qkv = torch.randn(2, 5, 12)
    q, k, v = qkv.chunk(3, -1)
    for before, after in zip((q, k, v), made := round_trip(q, k, v), strict=True):
        assert_same(before, after)
    assert len({t.untyped_storage().data_ptr() for t in made}) == 1
    made[0].zero_()
    assert made[1].abs().sum() > 0
    x = torch.zeros(4)
    whole, part = round_trip(x, x[1:3])
    whole.fill_(7)
    assert part.tolist() == [7, 7]


def test_views_far_apart_take_no_more_than_they_cover():
    cache = torch.zeros(1000, 8)
    packer = Packer()
    ends = cache[:2], cache[-2:]
    packer.add(ends, [placement(t) for t in ends], ["a", "b"], [None, None])
    assert [storage.elements for storage in packer.storages] == [16, 16]


def test_memory_is_copied_for_each_use():
    value = torch.zeros(3)
    packer = Packer()
    [number] = packer.add([value], [placement(value)], ["x"], [None])
    for _ in range(2):
        made = materialise(packer.layouts, [number], packer.data, CPU, "cpu")[number]
        assert made.tolist() == [0, 0, 0]
        made.fill_(1)


def test_weights_are_kept_once_by_their_content():
    weight, same, other = torch.ones(4), torch.ones(4), torch.zeros(4)
    packer = Packer()
    for value in (weight, same, other):
        packer.add([value], [placement(value)], ["x"], ["layer.weight"])
    assert [layout.storage for layout in packer.layouts] == [0, 0, 1]
    assert packer.storages[0].file == f"weights/{content_hash(weight)}.safetensors"
    assert content_hash(torch.zeros(4)) != content_hash(torch.zeros(4, dtype=torch.int32))
    assert content_hash(torch.zeros(0)) != content_hash(torch.zeros(1))


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse_coo tensor"),
        (torch.empty(2, device="meta"), "strided tensor on meta"),
        (torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "NestedTensor"),
    ],
)
def test_what_has_no_plain_memory(tensor, complaint):
    with pytest.raises(SceneError, match=complaint):
        Packer().add([tensor], [placement(torch.zeros(2, 2))], ["x"], [None])


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (TensorLayout(1, (2,), (1,), 0), "a tensor in storage 1"),
        (TensorLayout(0, (2, 2), (1,), 0), "strides"),
        (TensorLayout(0, (5,), (1,), 0), r"ends at element 5 of its storage; expected at most the 4"),
        (TensorLayout(0, (2,), (1,), 3), "ends at element 5"),
        (TensorLayout(0, (2, 3), (2, 1), 0), "ends at element 5"),
        (TensorLayout(0, (1 << 30, 1 << 30), (0, 0), 0), "expected at most 1,099,511,627,776 elements"),
    ],
)
def test_a_view_beyond_its_storage(layout, complaint):
    with pytest.raises(SceneError, match=complaint):
        check_layout(layout, [Storage("tensors.safetensors", "x", torch.float32, 4)])
