"""The join: the same op on the same tokens, however the two runs lay them out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.joined import joined, noise, padded, row, statuses
from torch import Tensor

from forkpoint import Layout

W = noise(7, 7, seed=3)
WIDE = noise(17, 17, seed=3).sign()


# --- Every layout -------------------------------------------------------------------------------------------


def program(x: Tensor, where: Any = None, stage: int = -1) -> Tensor:
    """Token by token, on whole numbers, so that nothing rounds; at one stage it changes one place."""

    def fault(value: Tensor, at: int) -> Tensor:
        if stage == at:
            value = value.clone()
            value[where] += 1
        return value

    first = fault(x @ WIDE, 0)
    second = fault(first.abs() * 2, 1)
    heads = fault(second[:, :, None].expand(-1, -1, 13, -1).transpose(1, 2).contiguous(), 2)
    return heads.transpose(1, 2).flatten(2) + 1


@settings(max_examples=60)
@given(
    st.data(), st.integers(1, 3), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)
)
def test_tokens_meet_wherever_their_layouts_put_them(data, rows, columns, left, right, mates):
    x = noise(rows, columns, 17).mul(8).round()  # more features, and heads, than there can be tokens
    order = data.draw(st.permutations(range(rows + mates)))
    batch = torch.cat([x, noise(mates, columns, 17, seed=5).round()])[list(order)]
    b, layout = padded(batch, left, right)
    b = b.round()
    stage = data.draw(st.integers(-1, 2))
    sample, position = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    at = (order.index(sample), left + position)
    where = (at[0], slice(None), at[1], 3) if stage == 2 else (*at, 3)
    found = joined(
        program, {"x": x}, {"x": b, "where": where, "stage": stage}, Layout.from_mask(torch.ones(rows, columns)), layout
    )  # fmt: skip
    assert found.pairing.pairs == tuple((s, order.index(s)) for s in range(rows))
    compared = [r for r in found.join.rows if r.status in ("equal", "differs")]
    for r in compared:
        assert (r.compared, r.left_out, r.reason) == (rows * columns, 0, ""), r.op.name
    wrong = sorted(
        (r for r in compared if r.difference is not None and not r.op.is_boundary), key=lambda r: r.order
    )
    if stage < 0:
        assert not wrong
    else:
        assert wrong
        # A movement is an op of its own where it copies, as it does not for one token.
        assert (
            wrong[0].op.function
            in {0: ("abs",), 1: ("contiguous", "flatten", "add"), 2: ("flatten", "add")}[stage]
        )
        for r in wrong:
            assert r.differing == 1
            assert (r.difference.sample, r.difference.position) == (sample, position)


def test_as_many_features_as_tokens_in_one_run_alone_change_nothing():
    x = noise(2, 3, 7)
    b, layout = padded(x, right=4)  # seven columns of seven features
    found = joined(lambda x: x @ W, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(2, 3)), layout)
    assert row(found, "(model)/matmul").status == "equal"


def test_a_batch_of_packed_samples_meets_a_batch_of_rows():
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    a = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    b = {"input_ids": torch.tensor([[4, 5, 1, 2, 3]]), "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    table = noise(6, 7)
    found = joined(lambda input_ids, **_: F.embedding(input_ids, table).tanh(), a, b)
    assert (row(found, "(model)/tanh").status, row(found, "(model)/tanh").compared) == ("equal", 5)


# --- Passes --------------------------------------------------------------------------------------------------


def experts(x: Tensor, choice: Tensor, idle: bool) -> Tensor:
    """Each expert runs on its own tokens; those that no token chose are left out, unless idle ones run too."""
    out = torch.zeros_like(x)
    for expert in range(5) if idle else choice.unique().tolist():
        rows, columns = torch.where(choice == expert)
        out[rows, columns] += torch.tanh(x[rows, columns] * (expert + 1))
    return out * 2


@pytest.mark.parametrize("idle", [False, True])
def test_the_experts_of_other_tokens_make_no_difference(idle):
    x, choice = noise(1, 4, 7), torch.tensor([[0, 2, 0, 3]])
    mates, theirs = noise(1, 4, 7, seed=4), torch.tensor([[1, 1, 2, 0]])
    found = joined(
        experts, {"x": x, "choice": choice, "idle": idle},
        {"x": torch.cat([mates, x]), "choice": torch.cat([theirs, choice]), "idle": idle},
    )  # fmt: skip
    for name in ("(model)/tanh", "(model)/mul"):
        assert row(found, name).status == "equal", name
        assert row(found, name).compared == 4
    assert row(found, "(model)/mul", 1).compared == 4
    written = row(found, "(model)/setitem")
    assert (written.status, written.compared) == ("equal", 4)


def test_a_token_that_passes_twice_meets_its_own_passes():
    def twice(x: Tensor, order: list[int]) -> Tensor:
        for scale in order:
            x = x * scale
        return x

    a, b = {"x": noise(1, 3, 5), "order": [2, 3]}, {"x": noise(1, 3, 5), "order": [2, 5]}
    found = joined(twice, a, b)
    mul = row(found, "(model)/mul")
    assert (mul.status, mul.compared, mul.differing) == ("differs", 6, 3)
    assert found.a.trace.events[mul.difference.event_a].nth == 1
    longer = joined(twice, a, {**b, "order": [2, 3, 5]})
    mul = row(longer, "(model)/mul")
    assert (mul.status, mul.compared, mul.differing) == ("equal", 6, 0)
    assert mul.reason == "a pass that the other run does not make"
    assert mul.left_out == 3


def step(x: Tensor, past_key_values: Any = None, spoil: float = 0.0) -> dict[str, Any]:
    """A layer of attention with a cache, written out."""
    keys = x @ W
    if past_key_values is not None:
        keys = torch.cat([past_key_values[0] + spoil, keys], 1)
    scores = x @ keys.mT
    offset = keys.shape[1] - x.shape[1]
    causal = torch.arange(keys.shape[1]) <= torch.arange(offset, keys.shape[1])[:, None]
    weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
    return {"out": weights @ keys, "past_key_values": (keys,)}


@pytest.mark.parametrize(
    "rows",
    [
        1,
        2,
    ],
)
def test_decoding_steps_meet_a_full_forward(rows):
    x = noise(rows, 6, 7)
    found = joined(step, {"x": x}, [{"x": x[:, :4]}, {"x": x[:, 4:5]}, {"x": x[:, 5:]}])
    assert row(found, "(model)/matmul", 0).compared == rows * 6
    assert row(found, "(model)/cat").status == "only in b"
    scores = row(found, "(model)/matmul", 1)
    assert (scores.compared, scores.reason) == (rows * 6, "")
    assert row(found, "(model)/softmax").compared == rows * 6
    assert row(found, "(model)/matmul", 2).compared == rows * 6


def test_a_cache_that_was_changed_differs_where_it_is_read_again():
    x = noise(1, 6, 7)
    calls = [{"x": x[:, :4]}, {"x": x[:, 4:], "spoil": 0.5}]
    found = joined(step, [{"x": x[:, :4]}, {"x": x[:, 4:]}], calls)
    cat = row(found, "(model)/cat")
    assert cat.status == "differs"
    assert (cat.compared, cat.differing) == (6, 4)
    assert (cat.difference.sample, cat.difference.position) == (0, 0)
    assert row(found, "(model)/matmul", 0).status == "equal"


@pytest.mark.parametrize(("spoil", "differing"), [(0.0, 0), (0.5, 4)])
def test_a_key_that_one_run_alone_reads_again_meets_the_key_as_it_was_made(spoil, differing):
    def always(x: Tensor, past_key_values: Any = None, spoil: float = 0.0) -> dict[str, Any]:
        past = x[:, :0] @ signs if past_key_values is None else past_key_values[0] + spoil
        keys = torch.cat([past, x @ signs], 1)
        return {"out": keys[:, -x.shape[1] :] * 1, "past_key_values": (keys,)}

    x, signs = (
        noise(1, 6, 7).mul(8).round(),
        W.sign(),
    )  # sums of whole numbers: of the same bits for any number of rows
    steps = [{"x": x[:, :4]}, {"x": x[:, 4:], "spoil": spoil}]
    for swap in (False, True):
        found = joined(always, *((steps, {"x": x}) if swap else ({"x": x}, steps)))
        cat = row(found, "(model)/cat")
        assert (cat.compared, cat.differing, cat.left_out) == (10, differing, 0)
        assert row(found, "(model)/mul").status == "equal"


def test_weights_are_compared_on_the_keys_that_both_runs_have():
    x = noise(1, 4, 7)
    b, layout = padded(x, left=2)

    def weights(x: Tensor) -> Tensor:
        return x @ x.mT

    found = joined(weights, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(1, 4)), layout)
    assert (row(found, "(model)/matmul").status, row(found, "(model)/matmul").compared) == ("equal", 4)
    fewer = joined(weights, {"x": x}, {"x": x[:, :3]})
    scores = row(fewer, "(model)/matmul")  # three queries, and not the keys after them
    assert (scores.status, scores.compared, scores.reason) == ("equal", 3, "")


def batched(x: Tensor) -> tuple[Tensor, Layout]:
    """One sample behind another, longer one, padded on the left."""
    rows, columns, features = x.shape
    assert rows == 1
    before = torch.cat([noise(1, 2, features, seed=4), x], 1)
    mask = torch.ones(2, columns + 2)
    mask[1, :2] = 0
    return torch.cat([noise(1, columns + 2, features, seed=3), before]), Layout.from_mask(mask)


def by_heads(x: Tensor, spoil: Callable[[Tensor], Tensor] = lambda scores: scores) -> Tensor:
    rows, columns, _ = x.shape
    heads = x.view(rows, columns, 2, 4).transpose(1, 2).reshape(rows * 2, columns, 4)
    scores = spoil(torch.bmm(heads, heads.mT)).softmax(-1)
    return scores.view(rows, 2, columns, columns) * 2


def test_heads_in_one_dimension_with_the_rows_are_compared_as_heads():
    x = noise(1, 4, 8)
    b, layout = batched(x)
    found = joined(by_heads, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(1, 4)), layout)
    scores = row(found, "(model)/bmm")
    assert (scores.status, scores.compared, scores.reason) == ("equal", 4, "")

    def swap(scores: Tensor) -> Tensor:
        return scores[[1, 0, *range(2, len(scores))]]

    found = joined(by_heads, {"x": x}, {"x": x, "spoil": swap})
    assert row(found, "(model)/bmm").status == "equal"
    assert (row(found, "(model)/softmax").status, row(found, "(model)/softmax").differing) == ("differs", 4)


# --- Values without tokens --------------------------------------------------------------------------------------


def test_a_value_of_the_whole_call_is_compared_whole():
    def whole(x: Tensor, scale: float) -> Tensor:
        return x + (torch.ones(11) * scale).sum()

    found = joined(whole, {"x": noise(1, 3, 5), "scale": 1.0}, {"x": noise(1, 3, 5), "scale": 2.0})
    assert row(found, "(model)/mul").status == "differs"
    assert (row(found, "(model)/mul").compared, row(found, "(model)/mul").differing) == (1, 1)
    difference = row(found, "(model)/sum").difference
    assert (difference.sample, difference.position) == (None, None)


def rotary(x: Tensor) -> Tensor:
    """A table over the columns, made of no token."""
    angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 0.01])
    return x[..., :3] * angles.cos()


def test_a_table_over_the_columns_meets_where_the_tokens_are():
    x = noise(1, 4, 7)
    plain = Layout.from_mask(torch.ones(1, 4))
    right, layout = padded(x, right=2)
    found = joined(rotary, {"x": x}, {"x": right}, plain, layout)
    cos = row(found, "(model)/cos")
    assert (cos.status, cos.compared) == ("equal", 4)
    left, layout = padded(x, left=2)
    found = joined(rotary, {"x": x}, {"x": left}, plain, layout)
    cos = row(found, "(model)/cos")
    assert (cos.status, cos.compared, cos.differing) == ("differs", 4, 4)
    assert (cos.difference.sample, cos.difference.position) == (0, 0)
    assert row(found, "(model)/arange").status == "differs"


def test_a_table_that_is_made_for_every_row_meets_in_the_row_of_the_sample():
    def embedded(x: Tensor, base: int) -> Tensor:
        columns = torch.arange(base, base + x.shape[1]).expand(x.shape[:2])
        return x + F.embedding(columns, noise(9, 7))

    x = noise(1, 4, 7)
    b, layout = batched(x)
    plain = Layout.from_mask(torch.ones(1, 4))
    found = joined(embedded, {"x": x, "base": 2}, {"x": b, "base": 0}, plain, layout)
    table = row(found, "(model)/embedding")
    assert (table.status, table.compared) == ("equal", 4)
    found = joined(embedded, {"x": x, "base": 1}, {"x": b, "base": 0}, plain, layout)
    table = row(found, "(model)/embedding")
    assert (table.status, table.compared, table.differing) == ("differs", 4, 4)
    assert (table.difference.sample, table.difference.position) == (0, 0)


def test_a_mask_over_queries_and_keys_meets_where_the_tokens_are():
    def masked(x: Tensor, window: int) -> Tensor:
        columns = torch.arange(x.shape[1])
        mask = (columns[:, None] - columns).abs() < window
        return (x @ x.mT).masked_fill(~mask, 0.0)

    x = noise(1, 4, 7)
    b, layout = padded(x, left=2)
    plain = Layout.from_mask(torch.ones(1, 4))
    found = joined(masked, {"x": x, "window": 2}, {"x": b, "window": 2}, plain, layout)
    assert row(found, "(model)/lt").status == "equal"
    assert row(found, "(model)/masked_fill").status == "equal"
    found = joined(masked, {"x": x, "window": 2}, {"x": b, "window": 3}, plain, layout)
    mask = row(found, "(model)/lt")
    assert (mask.status, mask.compared, mask.differing) == ("differs", 4, 4)
    assert not mask.floating
    assert row(found, "(model)/masked_fill").status == "differs"


def test_one_vector_a_sample_meets_whichever_column_it_was_taken_from():
    def last(x: Tensor) -> Tensor:
        return x[:, -1] * 2

    x = noise(2, 4, 7)
    b, layout = padded(x, right=2)
    found = joined(last, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(2, 4)), layout)
    mul = row(found, "(model)/mul")
    assert (mul.status, mul.compared, mul.differing) == ("differs", 2, 2)
    assert (mul.difference.sample, mul.difference.position) == (0, None)


def test_a_pooled_vector_belongs_to_the_tokens_that_it_was_made_of():
    x = noise(2, 4, 7)
    b, layout = padded(x, right=2)
    plain = Layout.from_mask(torch.ones(2, 4))

    def mean(x: Tensor, columns: int) -> Tensor:
        return x[:, :columns].mean(1)

    found = joined(mean, {"x": x, "columns": 4}, {"x": b, "columns": 4}, plain, layout)
    assert (row(found, "(model)/mean").status, row(found, "(model)/mean").compared) == ("equal", 2)
    found = joined(mean, {"x": x, "columns": 4}, {"x": b, "columns": 6}, plain, layout)
    assert row(found, "(model)/mean").status == "differs"
    assert (row(found, "(model)/mean").difference.sample, row(found, "(model)/mean").difference.position) == (
        0,
        None,
    )


# --- What is not compared ------------------------------------------------------------------------------------------


def test_ops_of_one_run_alone_are_listed():
    def sometimes(x: Tensor, more: bool) -> Tensor:
        if more:
            x = x.exp()
        return x * 2

    found = joined(sometimes, {"x": noise(1, 3, 5), "more": True}, {"x": noise(1, 3, 5), "more": False})
    assert statuses(found)["(model)/exp"] == "only in a"
    found = joined(sometimes, {"x": noise(1, 3, 5), "more": False}, {"x": noise(1, 3, 5), "more": True})
    assert statuses(found)["(model)/exp"] == "only in b"


def test_a_view_is_no_value_of_its_own():
    found = joined(lambda x: x.mT * 1, {"x": noise(1, 3, 5)}, {"x": noise(1, 3, 5)})
    assert statuses(found) == {
        "(model)/input:x": "equal", "(model)/mT": "view", "(model)/mul": "equal",
    }  # fmt: skip


def test_memory_that_nobody_wrote_to_is_not_compared():
    found = joined(
        lambda x: torch.empty(7).fill_(1) + x[..., :1], {"x": noise(1, 3, 5)}, {"x": noise(1, 3, 5)}
    )
    assert (row(found, "(model)/empty").status, row(found, "(model)/empty").reason) == (
        "not compared",
        "not written yet",
    )
    assert row(found, "(model)/fill_").status == "equal"


def test_a_pass_that_could_not_be_read_is_said_to_be_left_out():
    def function(x: Tensor) -> Tensor:
        made = []
        for index in range(3):
            made.append(x * 2)
            if index == 0:
                made[0].untyped_storage().resize_(0)
        return made[1] + made[2]

    mul = row(joined(function, {"x": noise(1, 3, 5)}, {"x": noise(1, 3, 5)}), "(model)/mul")
    assert (mul.status, mul.passes, mul.left_out) == ("equal", 3, 1)
    assert mul.reason == "its memory was let go of before it could be read"


def test_values_of_other_sizes_are_not_compared_and_say_why():
    def sized(x: Tensor, size: int) -> Tensor:
        return x.sum() * torch.ones(size).cumsum(0).sum() + torch.cat([x] * size, -1).sum()

    found = joined(sized, {"x": noise(1, 3, 5), "size": 7}, {"x": noise(1, 3, 5), "size": 11})
    cumsum, cat = row(found, "(model)/cumsum"), row(found, "(model)/cat")
    assert (cumsum.status, cumsum.reason) == ("not compared", "7 elements a coordinate in A, 11 in B")
    assert (cat.status, cat.reason) == ("not compared", "35 elements a coordinate in A, 55 in B")
    assert cat.left_out == 3


def test_what_no_rule_follows_is_not_compared_unless_the_layouts_are_the_same():
    def lost(x: Tensor) -> Tensor:
        return torch.einsum("...h,ho->...o", x, W)

    x = noise(1, 3, 7)
    assert row(joined(lost, {"x": x}, {"x": x}), "(model)/einsum").status == "equal"
    b, layout = padded(x, right=1)
    einsum = row(
        joined(lost, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(1, 3)), layout), "(model)/einsum"
    )
    assert (einsum.status, einsum.reason) == ("not compared", "an einsum with an ellipsis")


def test_values_of_two_dtypes_differ_until_they_are_looked_at():
    x = noise(1, 3, 5)
    found = joined(lambda x: x * 2, {"x": x}, {"x": x.bfloat16()})
    assert (row(found, "(model)/mul").status, row(found, "(model)/mul").differing) == ("differs", 3)


def test_not_a_number_equals_itself_and_minus_zero_zero():
    def odd(x: Tensor, sign: float) -> Tensor:
        return torch.cat([x * 0 * sign, x * float("nan")], -1)

    x = noise(1, 3, 5).abs()
    found = joined(odd, {"x": x, "sign": 1.0}, {"x": x, "sign": -1.0})
    assert row(found, "(model)/cat").status == "equal"


# --- Loops and what is kept -----------------------------------------------------------------------------------


def loop(x: Tensor, *, width: int = 17) -> Tensor:
    """On whole numbers, so that nothing rounds."""
    state = torch.zeros_like(x[:, 0, :width])
    found: list[Tensor] = []
    for t in range(x.shape[1]):
        state = (x[:, t, :width] * 2) + state.sign()
        found.append(state)
    return torch.stack(found, 1)


@pytest.mark.parametrize("width", [3, 17])
def test_a_pass_of_a_loop_meets_the_one_of_its_column(width):
    x = noise(2, 3, 17).mul(8).round()
    b, layout = padded(x, left=2)
    found = joined(
        lambda x: loop(x, width=width), {"x": x}, {"x": b.round()}, Layout.from_mask(torch.ones(2, 3)), layout
    )
    assert [row(found, "(model)/mul").status, row(found, "(model)/mul").compared] == ["equal", 6]
    add = row(found, "(model)/add")
    assert (add.status, add.compared, add.left_out) == ("differs", 6, 0)
    assert add.difference is not None
    assert add.difference.position == 0


KERNEL = noise(17, 1, 3).sign()


def convolved(
    x: Tensor, past_key_values: Any = None, *, forgets: bool = False, pads: bool = False
) -> dict[str, Any]:
    past = None if forgets or past_key_values is None else past_key_values[0]
    joint = x.mT if past is None else torch.cat([past, x.mT], -1)
    made = F.conv1d(F.pad(joint, (2, 0)) if pads else joint, KERNEL, padding=0 if pads else 2, groups=17)
    return {"made": made[..., : joint.shape[-1]][..., -x.shape[1] :], "past_key_values": (joint[..., -2:],)}


@pytest.mark.parametrize("steps", [(4, 2), (3, 1, 1, 1)])
@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("pads", [False, True])
def test_columns_kept_for_a_convolution_have_no_value_of_their_own(steps, forgets, pads):
    x = noise(1, 6, 17).mul(8).round()
    calls = [{"x": part} for part in x.split(steps, 1)]
    layouts = Layout.from_mask(torch.ones(1, 6)), Layout.steps([torch.ones(1, size) for size in steps])
    how = partial(convolved, forgets=forgets, pads=pads)
    found = row(joined(how, {"x": x}, calls, *layouts), "(model)/conv1d")
    assert found.compared == 6
    assert found.status == ("differs" if forgets else "equal")
