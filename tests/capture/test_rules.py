"""How functions move tokens, against two slow and obvious answers.

A *movement* is run on a tensor each element of which is the id of its own token: what comes out
must be labelled with exactly the ids that it holds. A function that *computes* is run again with
one token changed: only elements that are labelled with that token may change.

Sizes are drawn so that they often coincide: as many tokens as heads, features, or rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.tracing import Traced, grid, left_padded, marked, nothing
from torch import Tensor

from forkpoint.capture.rules import RULES

SIZES = st.integers(1, 3)


def check_movement(function: Callable[[Tensor], Tensor], x: Tensor, layout: Any) -> None:
    """What a movement returns is labelled with the ids that it holds; -1 where it holds none."""
    traced = Traced(function, {"x": x}, layout)
    queries, keys = traced.ids(traced.output)
    assert not traced.lost(traced.output)
    assert keys is None
    assert np.array_equal(queries, traced.output.numpy())


# --- Movements, one after another ---------------------------------------------------------------------


@st.composite
def moves(draw, shape: tuple[int, ...], *, pairs: bool = False) -> Callable[[Tensor], Tensor]:
    """One movement that fits a tensor of this shape; `pairs` leaves out what tables are not followed through."""
    ndim = len(shape)
    d = draw(st.integers(0, ndim - 1))
    size = shape[d]
    dim = draw(st.sampled_from([d, d - ndim]))
    kind = draw(st.sampled_from(KINDS))
    if kind == "permute":
        order = draw(st.permutations(range(ndim)))
        return draw(
            st.sampled_from([lambda x: x.permute(order), lambda x: torch.permute(x, dims=tuple(order))])
        )
    if kind == "transpose":
        other = draw(st.integers(0, ndim - 1))
        return draw(
            st.sampled_from([lambda x: x.transpose(dim, other), lambda x: torch.swapaxes(x, dim, other)])
        )
    if kind == "reshape":
        left = draw(st.integers(0, ndim - 1))
        return draw(
            st.sampled_from(
                [
                    lambda x: x.flatten(left),
                    lambda x: x.reshape(-1, size),
                    lambda x: x.unsqueeze(dim),
                    torch.squeeze,
                ]
            )
        )
    if kind == "split":
        groups = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        return lambda x: x.reshape(*shape[:d], groups, size // groups, *shape[d + 1 :])
    if kind == "select":
        at = draw(st.integers(-size, size - 1))
        return draw(st.sampled_from([lambda x: x.select(dim, at), lambda x: x.unbind(dim)[at]]))
    if kind == "narrow":
        start = draw(st.integers(0, size - 1))
        length = draw(st.integers(1, size - start))
        return draw(
            st.sampled_from(
                [lambda x: x.narrow(dim, start, length), lambda x: torch.split(x, [start, length, size - start - length], dim)[1]]
            )
        )  # fmt: skip
    if kind in ("chunk", "expand", "flip"):
        return {
            "chunk": lambda x: torch.chunk(x, 2, dim=dim)[-1],
            "expand": lambda x: x[None].expand(2, *shape),
            "flip": lambda x: x.flip(dim),
        }[kind]
    if kind == "roll":
        by = draw(st.integers(-3, 3))
        return draw(
            st.sampled_from([lambda x: x.roll(by, dim), lambda x: torch.roll(x, shifts=(by,), dims=(dim,))])
        )
    if kind == "repeat":
        times = draw(st.integers(1, 2))
        by_tensor = [] if pairs else [lambda x: torch.repeat_interleave(x, torch.arange(size) + times - 1, d)]
        return draw(
            st.sampled_from(
                [
                    lambda x: x.repeat(times, *[1] * ndim),
                    lambda x: x.repeat_interleave(times, dim=dim),
                    *by_tensor,
                ]
            )
        )
    if kind == "pad":
        before, after = draw(st.integers(-(size - 1), 2)), draw(st.integers(0, 2))
        widths = [0, 0] * (ndim - 1 - d) + [before, after]
        return lambda x: F.pad(x, widths, value=-1.0)
    if kind == "cat":
        return draw(
            st.sampled_from(
                [lambda x: torch.cat([x, x.flip(dim)], dim), lambda x: torch.cat([nothing(*shape), x], dim=d),
                 lambda x: torch.stack([x, x.flip(dim)], dim), lambda x: torch.stack([nothing(*shape), x], d)]
            )
        )  # fmt: skip
    if kind == "index_select":
        index = torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4)))
        return draw(
            st.sampled_from([lambda x: x.index_select(dim, index), lambda x: torch.index_select(x, d, index)])
        )
    if kind == "gather":
        index = torch.randint(size, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        return draw(
            st.sampled_from([lambda x: x.gather(dim, index), lambda x: torch.take_along_dim(x, index, dim)])
        )
    if kind == "sort":
        return draw(
            st.sampled_from([lambda x: x.sort(dim)[0], lambda x: torch.topk(x, size, dim=dim).values])
        )
    return draw(indices(shape))


KINDS = (
    "permute", "transpose", "reshape", "split", "select", "narrow", "chunk", "expand", "flip", "roll", "repeat", "pad",
    "cat", "index_select", "gather", "sort", "getitem", "getitem", "getitem",
)  # fmt: skip


@st.composite
def indices(draw, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """`x[...]` of everything that an index may be made of."""
    index = draw(an_index(shape))
    return lambda x: x[index]


@st.composite
def an_index(draw, shape: tuple[int, ...]) -> Any:
    wanted = draw(st.integers(1, len(shape)))
    tail = draw(st.booleans())  # the last dimensions rather than the first, behind an ellipsis
    sizes = shape[len(shape) - wanted :] if tail else shape[:wanted]
    width = draw(st.integers(1, 2))  # of the index tensors
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    masked = False
    parts: list[Any] = [Ellipsis] if tail else []
    for size in sizes:
        if draw(st.integers(0, 5)) == 0:
            parts.append(None)
        kind = draw(st.sampled_from(("int", "slice", "tensor", "tensor", "mask", "list", "scalar")))
        if kind == "int":
            parts.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            bounds = st.one_of(st.none(), st.integers(-size, size))
            parts.append(slice(draw(bounds), draw(bounds), draw(st.sampled_from([None, 1, 2]))))
        elif kind == "mask" and not masked:
            masked = True  # it keeps `width` of them, so that it fits the other index tensors
            kept = torch.zeros(size, dtype=torch.bool)
            kept[torch.randperm(size, generator=seed)[:width]] = True
            parts.append(kept if int(kept.sum()) == width else slice(None))
        elif kind == "list":
            parts.append(torch.randint(-size, size, (width,), generator=seed).tolist())
        elif kind == "scalar":
            parts.append(torch.tensor(draw(st.integers(0, size - 1))))
        else:
            above = (2,) if draw(st.booleans()) and not masked else ()
            parts.append(torch.randint(-size, size, (*above, width), generator=seed))
    return tuple(parts) if len(parts) > 1 or draw(st.booleans()) else parts[0]


@settings(max_examples=400)
@given(st.data(), SIZES, SIZES, SIZES)
def test_movements_one_after_another_move_the_labels_with_the_values(data, rows, columns, features):
    layout = left_padded(rows, columns)
    x = marked(layout, features)
    moved, shape, steps = x, tuple(x.shape), []
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(moves(shape))
        moved = step(moved)
        if not moved.numel() or moved.dim() == 0 or moved.numel() > 2000:
            break
        steps.append(step)
        shape = tuple(moved.shape)

    def program(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x.clone()

    check_movement(program, x, layout)


@settings(max_examples=200)
@given(st.data(), SIZES, SIZES)
def test_a_table_of_queries_and_keys_moves_with_both(data, rows, columns):
    layout = left_padded(rows, columns)
    x = marked(layout)
    heads = data.draw(SIZES)
    steps: list[Callable[[Tensor], Tensor]] = []
    shape: tuple[int, ...] = (rows, heads, columns, columns)
    moved = torch.zeros(shape)
    for _ in range(data.draw(st.integers(0, 3))):
        step = data.draw(moves(shape, pairs=True))
        moved = step(moved)
        if not moved.numel() or moved.dim() == 0 or moved.numel() > 2000:
            break
        steps.append(step)
        shape = tuple(moved.shape)

    def program(x: Tensor) -> Tensor:
        scores = x[:, None, :, None] * 1000 + x[:, None, None, :].expand(rows, heads, 1, columns)
        for step in steps:
            scores = step(scores)
        return scores.clone()

    traced = Traced(program, {"x": x}, layout)
    queries, keys = traced.ids(traced.output)
    keys = queries if keys is None else keys  # a single query meets its own key
    assert not traced.lost(traced.output)
    held = traced.output.numpy().astype(int)
    assert np.array_equal(np.where(held < 0, -1, queries), np.where(held < 0, -1, held // 1000))
    if columns > 1:
        assert np.array_equal(np.where(held < 0, -1, keys), np.where(held < 0, -1, held % 1000))


# --- Writes --------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.data(), SIZES, SIZES, SIZES)
def test_a_write_gives_its_tokens_to_what_it_writes_to(data, rows, columns, features):
    layout = left_padded(rows, columns)
    shape = (rows, columns + 1, features)
    index = data.draw(an_index(shape).filter(lambda index: not isinstance(index, list)))
    through = data.draw(st.sampled_from(["setitem", "view", "transposed"]))
    start = data.draw(st.booleans())
    probe = torch.arange(float(torch.Size(shape).numel())).reshape(shape)[index]
    if probe.unique().numel() < probe.numel():
        return  # an element written twice: torch does not say by whom
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    pick = torch.randint(rows * columns * features, probe.shape, generator=seed)

    def program(x: Tensor) -> Tensor:
        target = torch.cat([x, x[:, :1]], 1) if start else nothing(*shape)
        source = x.reshape(-1)[pick]
        if through == "setitem":
            target[index] = source
        elif through == "view":
            target[:][index] = source
        else:
            target.transpose(0, 1).transpose(0, 1)[index] = source
        return target.clone()

    check_movement(program, marked(layout, features), layout)


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "copy_": lambda x: nothing(2, 3, 3).copy_(x),
    "copy_ broadcast": lambda x: nothing(2, 3, 3).copy_(x[:, :1]),
    "copy_ through a view": lambda x: _into(nothing(2, 4, 3), lambda y: y[:, 1:].copy_(x)),
    "copy_ through a transposed view": lambda x: _into(nothing(2, 4, 3), lambda y: y.mT[..., 1:].copy_(x.mT)),
    "copy_ through a view of a view": lambda x: _into(
        nothing(2, 4, 3), lambda y: y[:, 1:][:, 0].copy_(x[:, 2])
    ),
    "halves": lambda x: _into(nothing(2, 3, 6), lambda y: (y[..., :3].copy_(x), y[..., 3:].copy_(x.flip(1)))),
    "step by step": lambda x: _into(
        nothing(2, 3, 3), lambda y: [y[:, 2 - t].copy_(x[:, t]) for t in range(3)]
    ),
    "row by row": lambda x: _into(nothing(2, 3, 3), lambda y: [y[1 - b].copy_(x[b]) for b in range(2)]),
    "unbind": lambda x: _into(
        nothing(2, 3, 3), lambda y: [v.copy_(x[:, t]) for t, v in enumerate(y.unbind(1))]
    ),
    "out=": lambda x: _into(nothing(2, 3, 3), lambda y: torch.mul(x, 1, out=y)),
    "out= of a view": lambda x: _into(nothing(2, 6, 3), lambda y: torch.mul(x, 1, out=y[:, 3:])),
    "cat out=": lambda x: _into(nothing(2, 6, 3), lambda y: torch.cat([x, x.flip(1)], 1, out=y)),
    "index_copy": lambda x: nothing(2, 4, 3).index_copy(1, torch.tensor([3, 1, 0]), x),
    "index_copy_ of its own": lambda x: x.clone().index_copy_(1, torch.tensor([2, 1, 0]), x),
    "index_put_": lambda x: nothing(2, 4, 3).index_put_(
        (torch.tensor([0, 1]), torch.tensor([3, 2])), x[:, 1]
    ),
    "index_add": lambda x: torch.zeros(2, 4, 3).double().index_add(1, torch.tensor([3, 0, 1]), x),
    "scatter": lambda x: nothing(2, 4, 3).scatter(1, _along(3, 1, 0), x),
    "scatter_add": lambda x: torch.zeros(2, 4, 3).double().scatter_add(1, _along(3, 0, 1), x),
    "a view taken before": lambda x: _seen(nothing(2, 3, 3), lambda y: y.view(6, 3), lambda y: y.copy_(x)),
    "a view beside another": lambda x: _seen(
        nothing(2, 4, 3), lambda y: y[:, :2].mT, lambda y: y[:, 1:].copy_(x)
    ),
    "a view of rows": lambda x: _seen(
        nothing(2, 4, 3), lambda y: y[1], lambda y: y.index_copy_(1, _ORDER, x)
    ),
    "empty": lambda x: _into(torch.empty(2, 3, 3).double(), lambda y: y.copy_(x)),
    "pad then write": lambda x: _into(F.pad(x, (0, 0, 1, 0), value=-1), lambda y: y[:, 0].copy_(x[:, 2])),
}


def _into(target: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(target)
    return target


def _seen(target: Tensor, view: Callable[[Tensor], Tensor], write: Callable[[Tensor], Any]) -> Tensor:
    seen = view(target)
    write(target)
    return seen


_ORDER = torch.tensor([3, 0, 2])


def _along(*index: int) -> Tensor:
    return torch.tensor(index)[None, :, None].expand(2, 3, 3)


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_keeps_its_tokens(name):
    layout = left_padded(2, 3)
    x = marked(layout, 3)
    traced = Traced(WRITES[name], {"x": x}, layout)
    held = traced.output.numpy()
    assert np.array_equal(traced.ids(traced.output)[0], np.where(held == 0, -1, held))


BY_A_TENSOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "getitem": lambda x, at: x[:, at],
    "getitem of one element": lambda x, at: x.reshape(-1)[at],
    "select": lambda x, at: x.select(1, at),
    "narrow": lambda x, at: x.narrow(1, at, 2),
    "narrow by a tensor": lambda x, at: torch.narrow(x, 1, at, 2),
    "slice": lambda x, at: x[:, at : at + 2],
    "slice by tensors with a dimension": lambda x, at: x[:, at[None] : at[None] + 2],
    "slice among others": lambda x, at: x[..., at : at + 2, :1],
    "roll": lambda x, at: torch.roll(x, int(at), 1),
    "setitem": lambda x, at: _into(nothing(2, 4, 3), lambda y: y.__setitem__((1, at, 0), x[1, 0, 0])),
    "setitem of a slice": lambda x, at: _into(
        nothing(2, 4, 3), lambda y: y.__setitem__((slice(None), slice(at, at + 2)), x[:, :2])
    ),
}


@pytest.mark.parametrize("whose", ["unseen", "a token's"])
@pytest.mark.parametrize("name", BY_A_TENSOR)
def test_a_number_in_a_tensor_counts_by_its_value_though_its_mark_is_the_same(name, whose):
    layout = left_padded(2, 4)
    numbers = torch.tensor([0, 1, 2])

    def program(x: Tensor) -> Tensor:
        moved: list[Tensor] = []
        for number in range(3):
            # what no tap saw is taken for a relative of the last value of its shape
            _ = x[1, 1, 0] * 1
            if whose == "unseen":
                at = numbers.numpy()[number : number + 1]
                at = torch.from_numpy(at).as_strided((), ())
            else:
                at = (x[1, 1, 0] * 0).long() + number
            moved.append(BY_A_TENSOR[name](x, at))
        return torch.stack(moved)

    for _ in range(2):
        check_movement(program, marked(layout, 3), layout)


def test_tokens_that_are_added_up_in_one_place_become_a_set():
    layout = left_padded(2, 3)
    traced = Traced(
        lambda x: torch.zeros(2, 2, 3).double().index_add_(1, torch.tensor([0, 1, 1]), x), {"x": marked(layout, 3)}, layout
    )  # fmt: skip
    ids = traced.table.slots(0, "main")
    queries, _ = traced.ids(traced.output)
    assert queries[1, 0, 0] == ids[1, 0]
    assert traced.table.members[queries[1, 1, 0]] == frozenset(ids[1, 1:].tolist())


def test_a_write_to_a_list_of_rows():
    layout = left_padded(2, 2)
    check_movement(
        lambda x: _into(nothing(3, 2, 2), lambda y: y.__setitem__([0, 1], x)), marked(layout, 2), layout
    )


@pytest.mark.parametrize("dim", [1, 2])
def test_a_table_is_repeated_by_a_tensor(dim):
    layout = _unpadded(1, 2)

    def program(x: Tensor) -> Tensor:
        return torch.repeat_interleave(x[:, :, None] * 1000 + x[:, None, :], torch.tensor([2, 1]), dim)

    traced = Traced(program, {"x": marked(layout)}, layout)
    queries, keys = traced.ids(traced.output)
    assert keys is not None
    assert np.array_equal(queries * 1000 + keys, traced.output.numpy())


def test_a_rule_is_of_a_function_that_exists():
    """A misspelt name would never be asked for."""
    owners = (torch, Tensor, F, torch.linalg, torch.ops.aten, torch.nn.attention.flex_attention)
    names = [name for name in RULES if "." not in name]
    assert len(names) > 200
    assert [
        name
        for name in names
        if not any(hasattr(owner, n) for owner in owners for n in (name, f"__{name}__"))
    ] == []


# --- Movements by other names -----------------------------------------------------------------------------

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "T of a matrix": lambda x: x[..., 0].T,
    "t": lambda x: x[..., 0].t(),
    "H": lambda x: x[..., 0].H,
    "mH": lambda x: x.mH,
    "adjoint": lambda x: x.adjoint(),
    "movedim": lambda x: torch.movedim(x, 1, 0),
    "tile": lambda x: torch.tile(x, (2, 1, 2)),
    "rot90": lambda x: torch.rot90(x, 1, [0, 1]),
    "roll of everything": lambda x: torch.roll(x, 4),
    "diagonal": lambda x: x.diagonal(0, 0, 1),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "hsplit": lambda x: torch.hsplit(x, 3)[1],
    "iteration": lambda x: list(x)[1],
    "rows stacked": lambda x: torch.stack(list(x.flip(0))),
    "concat": lambda x: torch.concat((x, x), axis=0),
    "cat of an empty vector": lambda x: torch.cat([torch.empty(0), x], 1),
    "reflect": lambda x: F.pad(x.mT, (2, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x.mT, (2, 1), mode="replicate"),
    "circular": lambda x: F.pad(x.mT, (2, 1), mode="circular"),
    "masked_select": lambda x: x.masked_select(
        torch.tensor([[True, False, True], [False, True, True]])[..., None]
    ),
    "bool mask": lambda x: x[torch.tensor([[True, False, True], [False, True, True]])],
    "mask over everything": lambda x: x[x > 2],
    "nonzero": lambda x: x[torch.tensor([[1, 0, 1], [0, 1, 1]]).nonzero(as_tuple=True)],
    "repeat by a tensor": lambda x: torch.repeat_interleave(x, repeats=torch.tensor([1, 0, 2]), dim=1),
    "repeat of everything": lambda x: torch.repeat_interleave(x, 2),
    "kthvalue": lambda x: x.kthvalue(1, 1).values,
    "dtype and back": lambda x: x.view(torch.int64).view(torch.float64),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x)),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([[[2], [0]], [[1], [0]]]), dim=1),
    "through torch.ops": lambda x: torch.ops.aten.permute(torch.ops.aten.view(x, [3, 2, 3]), [1, 0, 2]),
    "unpadded": lambda x: torch.nn.utils.rnn.unpad_sequence(x, torch.tensor([2, 3]), batch_first=True)[0],
    "transpose_": lambda x: x.clone().transpose_(1, 2),
    "t_": lambda x: x[0].clone().t_(),
    "unsqueeze_": lambda x: x.clone().unsqueeze_(1),
    "squeeze_": lambda x: x[:, None].clone().squeeze_(1),
    "squeeze_ of no dimension": lambda x: x.clone().squeeze_(1),
    "as_strided": lambda x: x.as_strided((2, 2, 3), (9, 3, 1), 3),
    "as_strided of its own shape": lambda x: x[0].as_strided((3, 3), (1, 3)),
    "heads": lambda x: x.view(2, 3, 1, 3).transpose(1, 2).expand(2, 3, 3, 3).reshape(6, 3, 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_movements_by_other_names(name):
    layout = left_padded(2, 3)
    check_movement(lambda x: OTHERS[name](x).clone(), marked(layout, 3), layout)


UNFOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "hstack": lambda x: torch.hstack((x, x.flip(1))),
    "vstack": lambda x: torch.vstack((x, x)),
    "column_stack": lambda x: torch.column_stack((x[..., 0], x[..., 0])),
    "block_diag": lambda x: torch.block_diag(x[0], x[1]),
    "interpolate": lambda x: F.interpolate(x.mT, scale_factor=2),
    "slice_scatter": lambda x: torch.slice_scatter(nothing(2, 4, 3), x, 1, 1, 4),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, 0], 1, 2),
    "masked_scatter": lambda x: x.masked_scatter(
        torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()[..., None], x.flip(1)
    ),
    "pad_sequence": lambda x: torch.nn.utils.rnn.pad_sequence(
        [x[0, 1:], x[1]], batch_first=True, padding_value=-1
    ),
    "take": lambda x: torch.take(x, torch.tensor([4, 17, 0])),
    "diag": lambda x: torch.diag(x[..., 0]),
    "put_": lambda x: nothing(2, 4).put_(torch.tensor([7, 0, 1, 2, 3, 4]), x[..., 0]),
    "scatter of one token to another": lambda x: x.scatter(
        1, torch.tensor([[[0, 0, 0]], [[2, 2, 2]]]), x[:, 1:2]
    ),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (0, 0, 1, 0), -1.0),
    "slice through torch.ops": lambda x: torch.ops.aten.slice(x, 1, 1, 3),
    "index through torch.ops": lambda x: torch.ops.aten.index(x, [None, torch.tensor([2, 0])]),
    "as_tensor": torch.as_tensor,
}
"""Movements that no rule follows: their values must count as not compared, with a reason."""


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_movement_that_no_rule_follows_says_so(name):
    layout = left_padded(2, 3)
    traced = Traced(lambda x: UNFOLLOWED[name](x).clone(), {"x": marked(layout, 3)}, layout)
    if not traced.lost(traced.output):
        assert np.array_equal(traced.ids(traced.output)[0], traced.output.numpy())


# --- Functions that compute ---------------------------------------------------------------------------------


def influence(function: Callable[[Tensor], Any], x: Tensor) -> dict[tuple[int, int], np.ndarray]:
    """For every column of an input, the elements of the output that change when its values do."""
    before = first_of(function(x.clone()))
    found = {}
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            changed = x.clone()
            changed[row, column] += torch.randn(x.shape[2:], dtype=x.dtype) + 1
            after = first_of(function(changed))
            same = (before == after) | (before.isnan() & after.isnan())
            found[row, column] = ~same.numpy()
    return found


def first_of(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def check_computation(
    function: Callable[[Tensor], Any], x: Tensor, layout: Any, *, causal: bool = False, pooled: bool = False
) -> None:
    """An element changes with its own tokens alone; with the tokens before them, too, where it is causal.

    Padding has no part in what is pooled: the set of a token and padding is the token.
    """
    with torch.no_grad():
        changed = influence(function, x)
        traced = Traced(function, {"x": x}, layout)
    output = first_of(traced.output)
    assert not traced.lost(output)
    queries, keys = traced.ids(output)
    slots, table = traced.table.slots(0, "main"), traced.table
    for (row, column), where in changed.items():
        item = int(slots[row, column])
        for index in np.argwhere(where):
            own = int(queries[tuple(index)])
            assert own >= 0, f"{index} changes with token {row, column}, but belongs to none"
            if own == item or item in table.members[own] or (keys is not None and keys[tuple(index)] == item):
                continue
            if pooled and table.is_padding(item):
                continue
            assert causal, f"{index} changes with column {row, column}, but belongs to another"
            assert table.places[own][0] == row
            assert table.places[own][1] >= column, f"{index} changes with the later column {row, column}"


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(x: Tensor, *, of_weight: bool = False) -> Tensor:
    with torch.enable_grad():
        x, by = x.detach().requires_grad_(), weight(x.shape[-1]).requires_grad_()
        return torch.autograd.grad((torch.tanh(x) * by).sum(), by if of_weight else [x])[0]


TOKENWISE: dict[str, Callable[[Tensor], Any]] = {
    "gradient": gradient,
    "beside zeros": lambda x: torch.zeros_like(x) + x,
    "linear": lambda x: F.linear(x, weight(4, x.shape[-1]), weight(4)),
    "linear by name": lambda x: F.linear(input=x, weight=weight(x.shape[1], x.shape[-1])),
    "matmul": lambda x: x @ weight(x.shape[-1], x.shape[1]),
    "matmul by name": lambda x: torch.matmul(input=x, other=weight(x.shape[-1], 4)),
    "reflected matmul": lambda x: weight(x.shape[-1], x.shape[-1]) @ x.mT,
    "vector": lambda x: x @ weight(x.shape[-1]),
    "mm": lambda x: torch.mm(input=x.flatten(0, 1), mat2=weight(x.shape[-1], 4)),
    "mv": lambda x: torch.mv(x.flatten(0, 1), weight(x.shape[-1])),
    "bmm": lambda x: torch.bmm(x, weight(x.shape[-1], 4).expand(x.shape[0], -1, -1)),
    "bmm by name": lambda x: torch.bmm(input=x, mat2=weight(x.shape[-1], 4).expand(x.shape[0], -1, -1)),
    "heads": lambda x: torch.matmul(
        x[:, None].expand(-1, x.shape[1], -1, -1), weight(x.shape[1], x.shape[-1], 4)
    ),
    "addmm": lambda x: torch.addmm(weight(4), x.flatten(0, 1), weight(x.shape[-1], 4)),
    "addmm by name": lambda x: torch.addmm(
        input=weight(4), mat1=x.flatten(0, 1), mat2=weight(x.shape[-1], 4), beta=0.5, alpha=2
    ),
    "baddbmm by name": lambda x: torch.baddbmm(
        input=weight(4), batch1=x, batch2=weight(x.shape[-1], 4).expand(x.shape[0], -1, -1), beta=1.0
    ),
    "addmv": lambda x: torch.addmv(weight(x.shape[0] * x.shape[1]), x.flatten(0, 1), weight(x.shape[-1])),
    "einsum": lambda x: torch.einsum("bth,oh->obt", x, weight(4, x.shape[-1])),
    "einsum of a list": lambda x: torch.einsum("bth,ho", [x, weight(x.shape[-1], 4)]),
    "einsum per head": lambda x: torch.einsum("bth,nho->bnto", x, weight(x.shape[1], x.shape[-1], 4)),
    "tensordot": lambda x: torch.tensordot(x, weight(x.shape[-1], 4), dims=1),
    "outer product": lambda x: torch.einsum("bth,btg->bthg", x, x),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], weight(x.shape[-1])),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "softmax over features": lambda x: x.softmax(-1),
    "batch_norm in eval": lambda x: F.batch_norm(x.mT, weight(x.shape[-1]), weight(x.shape[-1]).exp()),
    "mean over features": lambda x: x.mean(-1, keepdim=True),
    "variance": lambda x: torch.var_mean(x, dim=-1, unbiased=False)[0],
    "norm": lambda x: x.norm(2, -1),
    "max over features": lambda x: torch.max(x, dim=-1).values,
    "logsumexp": lambda x: x.logsumexp(-1),
    "cumsum over features": lambda x: x.cumsum(-1),
    "topk of features": lambda x: x.topk(1, -1).values,
    "gelu": F.gelu,
    "glu": lambda x: F.glu(torch.cat([x, x], -1)),
    "rotation": lambda x: torch.cat([-x[..., 1:], x[..., :1]], -1) * weight(x.shape[1], 1) + x,
    "mask": lambda x: x.masked_fill(weight(x.shape[1], 1) > 0, 0.0),
    "where": lambda x: torch.where(weight(x.shape[1], 1) > 0, x, 0.0),
    "lerp": lambda x: torch.lerp(x, weight(x.shape[-1]), 0.5),
    "convolution of width one": lambda x: F.conv1d(x.mT, weight(4, x.shape[-1], 1)),
    "convolution over features": lambda x: F.conv1d(x.flatten(0, 1)[:, None], weight(2, 1, 1)),
    "pooling of features": lambda x: F.avg_pool1d(x, x.shape[-1]),
    "scores": lambda x: x @ x.mT,
    "scores of heads": lambda x: torch.einsum("bih,bjh->bij", x, x * 2),
    "masked scores": lambda x: (x @ x.mT).masked_fill(weight(x.shape[1], x.shape[1]) > 0, -1e30),
    "scores and a bias": lambda x: torch.baddbmm(weight(x.shape[1], x.shape[1]), x, x.mT),
}


POOLED: dict[str, Callable[[Tensor], Any]] = {
    "gradient of a weight": lambda x: gradient(x, of_weight=True),
    "sum of everything": lambda x: x.sum(),
    "mean of every row": lambda x: x.mean(1),
    "mean of every row, weighed": lambda x: (x * weight(x.shape[1], 1)).sum(1, keepdim=True),
    "largest of every row": lambda x: torch.amax(x, 1),
    "state": lambda x: torch.einsum("bth,btg->bhg", x, x),
    "gram matrix": lambda x: x.mT @ x,
}


@pytest.mark.parametrize("name", TOKENWISE)
@pytest.mark.parametrize("sizes", [(2, 3, 3), (2, 2, 2), (3, 2, 3), (1, 4, 2), (2, 1, 2)])
def test_a_value_changes_with_its_own_tokens_alone(name, sizes):
    rows, columns, features = sizes
    check_computation(TOKENWISE[name], weight(rows, columns, features, seed=1), left_padded(rows, columns))


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("sizes", [(2, 3, 3), (2, 2, 2), (3, 2, 3), (1, 4, 2), (2, 1, 2)])
def test_what_is_made_of_several_tokens_belongs_to_all_of_them(name, sizes):
    rows, columns, features = sizes
    x = weight(rows, columns, features, seed=1)
    check_computation(POOLED[name], x, left_padded(rows, columns), pooled=True)


def causal_convolution(kernel: int, dilation: int = 1, how: str = "pad") -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        depthwise = weight(x.shape[-1], 1, kernel)
        reach = (kernel - 1) * dilation
        if how == "cut":
            return F.conv1d(x.mT, depthwise, padding=reach, dilation=dilation, groups=x.shape[-1])[
                ..., : x.shape[1]
            ]
        if how == "pad":
            padded = F.pad(x.mT, (reach, 0))
        else:
            padded = torch.cat([torch.zeros(x.shape[0], x.shape[-1], reach).double(), x.mT], -1)
        return F.conv1d(padded, depthwise, dilation=dilation, groups=x.shape[-1])

    return run


def _scan(x: Tensor) -> Tensor:
    state, outputs = torch.zeros(x.shape[0], x.shape[2]).double(), []
    for t in range(x.shape[1]):
        state = 0.5 * state + x[:, t]
        outputs.append(state)
    return torch.stack(outputs, 1)


CAUSAL: dict[str, Callable[[Tensor], Any]] = {
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: torch.cumprod(x, dim=1),
    "shift": lambda x: x + F.pad(x, (0, 0, 1, -1)) * 0.5,
    "scan": lambda x: torch.stack([x[:, : t + 1].sum(1) for t in range(x.shape[1])], 1),
    "triangular solution": lambda x: torch.linalg.solve_triangular(
        (weight(x.shape[1], x.shape[1]).tril(-1) + torch.eye(x.shape[1])).expand(len(x), -1, -1),
        x,
        upper=False,
    ),
    "triangular product": lambda x: weight(x.shape[1], x.shape[1]).tril() @ x,
    "scan with a state": _scan,
    **{
        f"convolution of {kernel}, dilated by {dilation}, {how}": causal_convolution(kernel, dilation, how)
        for kernel, dilation in ((2, 1), (3, 1), (4, 1), (2, 2))
        for how in ("pad", "zeros")
    },
}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("sizes", [(2, 3, 3), (1, 4, 4), (2, 4, 2)])
def test_a_causal_value_changes_with_its_own_token_and_earlier_ones_alone(name, sizes):
    rows, columns, features = sizes
    if name == "triangular product" and sizes == (1, 4, 4):
        rows = 2
    x = weight(rows, columns, features, seed=1)
    check_computation(CAUSAL[name], x, _unpadded(rows, columns), causal=True)


def _unpadded(rows: int, columns: int) -> Any:
    from forkpoint import Layout

    return Layout.from_mask(torch.ones(rows, columns))


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_a_convolution_padded_on_both_sides_and_cut_is_causal(kernel):
    check_computation(causal_convolution(kernel, how="cut"), weight(2, 5, 2), _unpadded(2, 5), causal=True)


@pytest.mark.parametrize("kernel", [2, 4])
def test_a_window_of_earlier_tokens_and_the_new_one_belongs_to_the_new_one(kernel):
    def step(x: Tensor) -> Tensor:
        return F.conv1d(x[:, -kernel:].mT, weight(x.shape[-1], 1, kernel), groups=x.shape[-1])

    check_computation(step, weight(2, 5, 2), _unpadded(2, 5), causal=True)


# --- Particular functions -----------------------------------------------------------------------------------


def rows_of(traced: Traced, value: Tensor, index: tuple[int, ...]) -> Any:
    """The (sample, position) of one element."""
    item = int(traced.ids(value)[0][index])
    return None if item < 0 or traced.table.tokens[item] is None else traced.table.tokens[item][1:]


def test_a_lookup_belongs_to_the_tokens_of_its_index():
    ids = torch.tensor([[0, 4, 5], [6, 7, 8]])
    layout = left_padded(2, 3)
    table = weight(9, 3)
    for look in (lambda i: F.embedding(i, table), lambda i: table[i], lambda i: F.one_hot(i, 3 * 3)):
        traced = Traced(lambda input_ids, look=look: look(input_ids), {"input_ids": ids}, layout)
        assert rows_of(traced, traced.output, (0, 1, 2)) == (0, 0)
        assert rows_of(traced, traced.output, (0, 0, 0)) is None
        assert rows_of(traced, traced.output, (1, 2, 0)) == (1, 2)


def test_where_something_is_belongs_to_the_tokens_that_are_there():
    layout = left_padded(2, 3)
    x = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 3.0]])
    for find in (
        torch.nonzero,
        torch.argwhere,
        lambda x: torch.where(x)[1],
        lambda x: x.nonzero(as_tuple=True)[0],
    ):
        traced = Traced(lambda x, find=find: find(x), {"x": x}, layout)
        places = [rows_of(traced, traced.output, (i, 0)[: traced.output.dim()]) for i in range(3)]
        assert places == [(0, 1), (1, 0), (1, 2)]


def test_an_order_of_tokens_moves_them():
    layout = _unpadded(1, 4)
    x = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    for order in (torch.argsort, lambda x: x.sort().indices, lambda x: x.topk(4, largest=False).indices):
        traced = Traced(lambda x, order=order: order(x), {"x": x}, layout)
        assert [rows_of(traced, traced.output, (0, i)) for i in range(4)] == [(0, 3), (0, 1), (0, 2), (0, 0)]


def test_attention_belongs_to_the_query():
    layout = left_padded(2, 3)

    def attend(x: Tensor) -> Tensor:
        heads = x.view(2, 3, 2, 3).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads.flip(2), heads)

    traced = Traced(attend, {"x": weight(2, 3, 6)}, layout)
    assert rows_of(traced, traced.output, (0, 1, 2, 0)) == (0, 1)
    assert traced.ids(traced.output)[1] is None


def test_weights_times_values_belong_to_the_query():
    layout = left_padded(2, 3)
    traced = Traced(lambda x: (x @ x.mT).softmax(-1) @ x, {"x": weight(2, 3, 3)}, layout)
    queries, keys = traced.ids(traced.output)
    assert keys is None
    assert np.array_equal(queries, np.broadcast_to(grid(layout).numpy()[:, :, None], (2, 3, 3)))


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_layer_has_a_step_for_each_token_and_a_state_for_each_row(kind, batch_first):
    layer = kind(3, 3, batch_first=batch_first).double()
    layout = left_padded(2, 3)

    def run(x: Tensor) -> Any:
        steps, state = layer(x if batch_first else x.transpose(0, 1))
        return (steps if batch_first else steps.transpose(0, 1)).clone(), state

    traced = Traced(run, {"x": weight(2, 3, 3)}, layout)
    steps, state = traced.output
    assert rows_of(traced, steps, (0, 1, 0)) == (0, 0)
    item = int(traced.ids(state[0] if kind is torch.nn.LSTM else state)[0][0, 1, 0])
    assert {traced.table.tokens[m][1:] for m in traced.table.members[item]} == {(1, 0), (1, 1), (1, 2)}


def test_a_packed_recurrent_layer_gives_the_tokens_back_in_their_places():
    layer = torch.nn.GRU(3, 3, batch_first=True).double()
    lengths = torch.tensor([3, 2])

    def run(x: Tensor) -> Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)[0]

    from forkpoint import Layout

    traced = Traced(run, {"x": weight(2, 3, 3)}, Layout.from_mask(torch.tensor([[1, 1, 1], [1, 1, 0]])))
    places = [[rows_of(traced, traced.output, (row, t, 0)) for t in range(3)] for row in range(2)]
    assert places == [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), None]]


@pytest.mark.parametrize(
    ("stride", "padding", "wanted"),
    [(1, 1, [(0, 0), (0, 1), (0, 2), (0, 3)]), (2, 0, [(0, 0), (0, 2)]), (2, 1, [(0, 0), (0, 1), (0, 3)])],
)
def test_a_window_is_named_by_one_of_its_tokens(stride, padding, wanted):
    kernel = 3 if stride == 1 else 2
    traced = Traced(
        lambda x: F.conv1d(x.mT, weight(1, 2, kernel), stride=stride, padding=padding), {"x": weight(1, 4, 2)},
        _unpadded(1, 4),
    )  # fmt: skip
    found = [rows_of(traced, traced.output, (0, 0, t)) for t in range(traced.output.shape[-1])]
    assert found == wanted


def test_a_window_that_reaches_into_padding_belongs_to_no_token():
    from forkpoint import Layout

    traced = Traced(
        lambda x: F.conv1d(x.mT, weight(1, 2, 2), stride=2), {"x": weight(1, 4, 2)},
        Layout.from_mask(torch.tensor([[1, 1, 1, 0]])),
    )  # fmt: skip
    assert [rows_of(traced, traced.output, (0, 0, t)) for t in range(2)] == [(0, 0), None]
    assert traced.table.is_padding(int(traced.ids(traced.output)[0][0, 0, 1]))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.addbmm(weight(3, 3), x, weight(2, 3, 3)),
        lambda x: torch.einsum("...h,ho->...o", x, weight(3, 4)),
        lambda x: torch.einsum("bii->bi", x),
        lambda x: torch.linalg.vecdot(x, weight(3, 3)),
    ],
)
def test_what_no_rule_follows_has_a_reason(function):
    traced = Traced(function, {"x": weight(2, 3, 3)}, left_padded(2, 3))
    assert traced.recorder.label_of(traced.output) is None
    assert traced.lost(traced.output)


def test_an_einsum_down_to_one_number_belongs_to_all_tokens():
    traced = Traced(lambda x: torch.einsum("bth->", x), {"x": weight(2, 3, 3)}, _unpadded(2, 3))
    label = traced.recorder.label_of(traced.output)
    assert label is not None
    assert label.q.shape == ()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_that_reads_its_state_is_no_table_of_queries_and_keys(rows):
    """One token a row, as in a decoding step: only a product of one row and one column is a score."""
    tokens = weight(rows, 1, 6, seed=1)

    def state(x: Tensor) -> Tensor:
        return torch.bmm(x[:, 0, :, None] * weight(6, 4), weight(6, 4).mean(0) * x[:, 0, :4, None])

    def scores(x: Tensor) -> Tensor:
        return torch.bmm(x, x.mT)

    layout = left_padded(rows, 1)
    for function, is_table in ((state, False), (scores, True)):
        traced = Traced(function, {"x": tokens}, layout)
        queries, keys = traced.ids(traced.output)
        assert np.array_equal(queries, np.broadcast_to(grid(layout).numpy()[..., None], queries.shape))
        assert (keys is not None) == is_table
