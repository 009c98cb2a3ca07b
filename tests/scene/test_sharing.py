"""Which elements two tensors share: compactly, and as indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import SceneError
from forkpoint.match.pairs import Pairs
from forkpoint.scene.format.sharing import Sharing, as_indexing, index_text, repeat_text


def pairs(a, b) -> Pairs:
    a, b = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    return Pairs(a, b, np.zeros(len(a), dtype=np.int64))


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
        max_size=30,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_runs_hold_every_pair(found):
    a, b = zip(*found, strict=True) if found else ((), ())
    sharing = Sharing.of(pairs(a, b))
    at_a, at_b = sharing.indices()
    assert sorted(zip(at_a.tolist(), at_b.tolist(), strict=True)) == sorted(found)
    assert at_a.tolist() == sorted(a)
    assert len(sharing) == len(found)
    sharing.check((41,), (41,), "x")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=30, unique_by=lambda p: p[1]))
def test_an_element_of_a_may_meet_several_of_b(found):
    """As where one run looks positions up once for all rows."""
    a, b = zip(*found, strict=True) if found else ((), ())
    sharing = Sharing.of(pairs(a, b))
    at_a, at_b = sharing.indices()
    assert sorted(zip(at_a.tolist(), at_b.tolist(), strict=True)) == sorted(found)
    sharing.check((10,), (41,), "x")


def test_rows_that_share_one_are_runs_of_whole_rows():
    sharing = Sharing.of(pairs(np.tile(np.arange(6), 3), np.arange(18)))
    assert sharing.runs.tolist() == [[0, 0, 6], [0, 6, 6], [0, 12, 6]]
    a, b = sharing.take(torch.arange(6), torch.arange(18))
    assert torch.equal(a, b % 6)


@st.composite
def boxes(draw):
    """Two shapes, and a block of the same size in each."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    blocks = []
    for _ in "ab":
        starts = [draw(st.integers(0, 3)) for _ in sizes]
        steps = [draw(st.integers(1, 2)) for _ in sizes]
        index = tuple(slice(b, b + n * s, s) for b, n, s in zip(starts, sizes, steps, strict=True))
        shape = tuple(
            b + n * s + draw(st.integers(0, 2)) for b, n, s in zip(starts, sizes, steps, strict=True)
        )
        blocks.append((shape, index))
    return blocks


@given(boxes())
def test_blocks_can_be_written_as_indexing(found):
    (shape_a, index_a), (shape_b, index_b) = found
    a, b = (torch.arange(int(np.prod(shape))).reshape(shape) for shape in (shape_a, shape_b))
    sharing = Sharing.of(pairs(a[index_a].reshape(-1), b[index_b].reshape(-1)))
    indexing = as_indexing(sharing, shape_a, shape_b)
    assert indexing is not None
    for tensor, index, right in ((a, indexing[0], a[index_a]), (b, indexing[1], b[index_b])):
        written = eval(f"t{index_text(index)}", {"t": tensor})
        assert written.tolist() == right.tolist()
        assert tensor[index or ...].tolist() == right.tolist()


def test_packed_rows_can_be_written_as_a_list():
    sharing = Sharing.of(pairs([0, 1, 4, 5], [0, 1, 2, 3]))
    assert [index_text(i) for i in as_indexing(sharing, (3, 2), (2, 2))] == ["[::2]", ""]
    sharing = Sharing.of(pairs([0, 1, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]))
    assert [index_text(i) for i in as_indexing(sharing, (4, 2), (3, 2))] == ["[[0, 2, 3]]", ""]


def test_what_lies_scattered_cant():
    assert as_indexing(Sharing.of(pairs([0, 3], [0, 1])), (2, 2), (2,)) is None
    assert as_indexing(Sharing.of(pairs([0, 1], [1, 0])), (2,), (2,)) is None
    assert as_indexing(Sharing.of(pairs([], [])), (2,), (2,)) is None


def test_heads_that_stand_for_several():
    few, many = torch.arange(4.0).reshape(1, 2, 2), torch.zeros(1, 4, 3)
    many[:, :, :2] = few.repeat_interleave(2, 1)
    flat = np.arange(12).reshape(4, 3)[:, :2].reshape(-1)
    sharing = Sharing.of(pairs(np.arange(8), flat), repeat_a=(1, 2))
    a, b = sharing.take(few, many)
    assert a.tolist() == b.tolist()
    assert [index_text(i) for i in as_indexing(sharing, (1, 2, 2), (1, 4, 3))] == ["", "[:, :, :2]"]
    assert repeat_text(sharing.repeat_a) == ".repeat_interleave(2, 1)"


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        (torch.zeros(1, 2, dtype=torch.int64), r"of shape \[1, 2\]"),
        (torch.zeros(1, 3), r"\[n, 3\] of int64"),
        (torch.tensor([[0, -1, 1]]), "out of range"),
        (torch.tensor([[0, 1 << 60, 1]]), "out of range"),
        (torch.tensor([[0, 0, 0]]), "up to elements"),
        (torch.tensor([[0, 0, 5]]), "up to elements"),
        (torch.tensor([[0, 3, 2]]), "up to elements"),
        (torch.tensor([[0, 0, 4], [0, 0, 4]]), "over 8 elements"),
    ],
)
def test_a_hostile_alignment(runs, complaint):
    with pytest.raises(SceneError, match=complaint):
        Sharing(runs).check((2, 2), (4,), "x")


def test_a_hostile_repetition():
    with pytest.raises(SceneError, match="repeated"):
        Sharing(torch.tensor([[0, 0, 1]]), repeat_a=(0, 1 << 50)).check((4,), (4,), "x")
    with pytest.raises(SceneError, match="repeated"):
        Sharing(torch.tensor([[0, 0, 1]]), repeat_a=(3, 2)).check((4,), (4,), "x")
