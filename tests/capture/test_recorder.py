"""The recorder: each value as it was when it passed by, with the coordinates that it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.capture.tracing import Traced, left_padded
from torch import Tensor, nn

from forkpoint import Layout
from forkpoint.capture import digest
from forkpoint.capture.trace import Event

PLAIN = Layout.from_mask(torch.ones(1, 3))


def x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (1, 3, 5), generator=torch.Generator().manual_seed(seed))


def digests(value: Tensor, rows: tuple[int, ...] = (0, 1)) -> list[int]:
    """What a value's digests are when they are computed at once."""
    return digest.rows(value, rows).reshape(-1).tolist()


def held(traced: Traced, event: Event) -> list[int]:
    found = traced.trace.resolve(event).digests
    assert found is not None
    return found.reshape(-1).tolist()


def same(traced: Traced, event: Event, value: Tensor) -> bool:
    assert traced.trace.resolve(event).status == "digest"
    return held(traced, event) == digests(value, tuple(d for d in (0, 1) if value.shape[d] > 1))


# --- The value at the time -------------------------------------------------------------------------------


def test_what_is_written_later_does_not_show_earlier():
    values: list[Tensor] = []

    def program(x: Tensor) -> Tensor:
        y = x * 2
        values.append(y.clone())
        y.add_(1)
        values.append(y.clone())
        y[:, :1] = 0
        values.append(y[:, :1].clone())
        torch.sub(x, 1, out=y)
        values.append(y.clone())
        nn.functional.relu(y, inplace=True)
        values.append(y.clone())
        return y

    traced = Traced(program, {"x": x()}, PLAIN)
    names = ["mul", "add_", "setitem", "sub", "relu"]
    for name, value in zip(names, values, strict=True):
        event = traced.event(f"(model)/{name}")
        assert event.status == "digest"
        assert same(traced, event, value), name
    assert same(traced, traced.event("(model)/clone", 0), values[0])


def test_a_write_through_a_view_does_not_show_in_what_was_there_before():
    def program(x: Tensor) -> Tensor:
        y = x * 2
        copied = y.clone()
        y.view(-1)[0].zero_()
        y.mT.mul_(3)
        return copied + y

    traced = Traced(program, {"x": x()}, PLAIN)
    assert same(traced, traced.event("(model)/mul"), x() * 2)
    assert same(traced, traced.event("(model)/clone"), x() * 2)


def test_a_write_that_no_tap_sees_is_the_value_of_the_op_before_it():
    def program(x: Tensor) -> Tensor:
        y = x * 2
        y.numpy()[0, 1] = 7  # no tap sees numpy, and no version counts it
        return y + 1

    wanted = x() * 2
    wanted[0, 1] = 7
    traced = Traced(program, {"x": x()}, PLAIN)
    assert same(traced, traced.event("(model)/mul"), wanted)


def test_a_write_below_the_taps_right_after_an_op_is_that_op_s():
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            with torch._C.DisableTorchFunction():
                y.add_(5)
            z = y + 1
            with torch._C.DisableTorchFunction():
                z.add_(5)
            return z

    traced = run(Writing())
    assert same(traced, traced.event("(model)/mul"), x() * 2 + 5)
    assert same(traced, traced.event("(model)/add"), x() * 2 + 5 + 1 + 5)


def test_a_value_overwritten_before_it_could_be_read_says_so():
    def program(x: Tensor) -> Tensor:
        y = x * 2
        z = x * 3
        with torch._C.DisableTorchFunction():
            y.add_(5)
        return y + z

    event = Traced(program, {"x": x()}, PLAIN).event("(model)/mul", 0)
    assert (event.status, event.reason) == ("skipped", "overwritten before it could be read")


def test_memory_that_nobody_wrote_to_is_not_compared():
    def program(x: Tensor) -> Tensor:
        made = torch.empty_like(x), x.new_empty(2), torch.empty(3)
        made[0].copy_(x)
        return made[0] * 2

    traced = Traced(program, {"x": x()}, PLAIN)
    for name in ("empty_like", "new_empty", "empty"):
        event = traced.event(f"(model)/{name}")
        assert (event.status, event.reason) == ("skipped", "not written yet")
    assert same(traced, traced.event("(model)/copy_"), x())


def test_a_sparse_value_is_not_compared():
    event = Traced(lambda x: x.to_sparse().to_dense(), {"x": x()}, PLAIN).event("(model)/to_sparse")
    assert event.status == "skipped"
    assert event.reason == "a sparse_coo tensor on cpu"


# --- Modules ------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        hidden = self.second(self.first(x)) * scale
        return self.inner(hidden), {"hidden": hidden}


def run(module: nn.Module, *, shape: tuple[int, ...] = (1, 3, 5), **more: Any) -> Traced:
    given = {"x": x(*shape), **more}
    return Traced(module, given, Layout.read([given]), model=module)


def names(traced: Traced) -> list[str]:
    return [op.name for op, _ in traced.events]


def test_a_module_is_seen_from_its_inputs_to_its_outputs():
    traced = run(Block())
    assert names(traced) == [
        "(model)/input:x",
        "first/input:input", "first/linear", "first/output",
        "first/input:input", "first/linear", "first/output",
        "(model)/mul",
        "inner/input:input", "inner.0/input:input", "inner.0/relu", "inner.0/output",
        "inner.1/input:input", "inner.1/linear", "inner.1/output",
        "inner/output", "(model)/output", "(model)/output",
    ]  # fmt: skip


def test_what_is_written_to_in_part_goes_on_as_a_whole():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, 1:2] = x[:, 1:2]
            return y

    model = nn.Sequential(Writes(), nn.Identity())
    traced = Traced(model, {"input": x()}, PLAIN, model)
    y = x() * 2
    y[:, 1:2] = x()[:, 1:2]
    assert same(traced, traced.event("0/setitem"), y[:, 1:2])
    assert same(traced, traced.event("0/output"), y)
    assert same(traced, traced.event("1/input:input"), y)


def test_what_is_written_to_through_a_view_goes_on_with_its_new_value():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, 1:].add_(1)
            return y

    traced = Traced(nn.Sequential(Writes()), {"input": x()}, PLAIN)
    y = x() * 2
    y[:, 1:] += 1
    assert same(traced, next(event for op, event in traced.events if op.function == "output"), y)


def test_two_modules_that_are_one_go_by_the_first_name_and_count_their_passes():
    block = Block()
    traced = run(block)
    assert [event.nth for op, event in traced.events if op.name == "first/output"] == [0, 1]
    linear = [event.nth for op, event in traced.events if op.name == "first/linear"]
    assert linear == [0, 0]  # two places in the source


def test_a_value_passed_on_is_not_digested_again():
    traced = run(Block())
    boundary = [event for op, event in traced.events if op.is_boundary and op.name != "(model)/input:x"]
    assert {event.status for event in boundary} == {"alias"}
    linear = traced.event("first/linear")
    assert traced.trace.resolve(traced.event("first/output")) is linear


def test_a_module_that_the_model_makes_as_it_runs_goes_by_its_class():
    class Maker(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.Softmax(-1)(x)

    assert "Softmax/softmax" in names(run(Maker()))


def test_arguments_have_the_names_of_the_forward_method():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            return self.block(x, scale=mask)

    found = names(run(Outer(), mask=torch.ones(1, 3, 1)))
    assert "block/input:x" in found
    assert "block/input:scale" in found


def test_a_hook_that_gives_another_output_shows_at_its_module():
    block = Block()
    block.first.register_forward_hook(lambda module, args, output: output + 1)
    traced = run(block)
    assert same(traced, traced.event("first/output"), block.first(x()).detach())
    assert not same(traced, traced.event("first/linear"), block.first(x()).detach())


@dataclass
class Two:
    one: Tensor
    other: Tensor


class Outputs(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x * 2)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda y: y, 1), (lambda y: (y, y + 1), 2), (lambda y: [y, (y,)], 2), (lambda y: {"a": y, "b": None}, 1),
        (lambda y: {"a": {"b": y}}, 1), (lambda y: Two(y, y + 1), 2),
    ],
)  # fmt: skip
def test_every_tensor_that_a_module_returns_is_an_output_of_it(make, count):
    assert names(run(Outputs(make))).count("(model)/output") == count


# --- Modules that hide their work -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_module_is_seen_by_its_inputs_and_outputs():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(x) * 2

    traced = run(Outer())
    assert [name for name in names(traced) if name.startswith("hidden")] == [
        "hidden/input:0",
        "hidden/output",
    ]
    assert (
        traced.event("hidden/output").cells.ids.tolist() == traced.event("(model)/input:x").cells.ids.tolist()
    )


def test_what_another_thread_made_is_seen_where_it_is_used():
    import threading

    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.work, self.after = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            found: list[Tensor] = []
            thread = threading.Thread(target=lambda: found.append(self.work(x)))
            thread.start()
            thread.join()
            return self.after(found[0].detach())

    traced = run(Threaded())
    assert not [name for name in names(traced) if name.startswith("work")]
    assert (
        traced.event("after/linear").cells.ids.tolist() == traced.event("(model)/input:x").cells.ids.tolist()
    )


def test_a_module_inside_vmap_is_not_looked_into():
    block = nn.Linear(5, 5)

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = block

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.linear)(x) * 2

    traced = run(Mapped())
    assert "linear/linear" not in names(traced)
    assert traced.event("(model)/mul").status == "digest"


def test_functions_inside_vmap_are_no_ops_of_the_model():
    def program(x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row.softmax(-1) + 1)(x) * 2

    traced = Traced(program, {"x": x()}, PLAIN)
    assert names(traced) == ["(model)/input:x", "(model)/mul"]


# --- Modes and sizes --------------------------------------------------------------------------------------------


def test_a_value_without_elements_is_recorded():
    def program(x: Tensor) -> Tensor:
        return torch.cat([x[:, :0] * 2, x], 1) + x[:0].sum()

    traced = Traced(program, {"x": x()}, PLAIN)
    assert traced.event("(model)/mul").status == "digest"
    assert traced.event("(model)/mul").shape == (1, 0, 5)
    assert same(traced, traced.event("(model)/add"), x())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradient_modes_of_the_model_s_own(mode):
    def program(x: Tensor) -> Tensor:
        with mode():
            y = x * 2
            kept = y.clone()
            y.add_(1)
            return kept + y

    traced = Traced(program, {"x": x()}, PLAIN)
    assert same(traced, traced.event("(model)/mul"), x() * 2)
    assert same(traced, traced.event("(model)/add_"), x() * 2 + 1)


def test_autocast_gives_the_dtypes_that_it_gives_without_taps():
    layer = nn.Linear(5, 5)

    def program(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x) + 1

    traced = Traced(program, {"x": x()}, PLAIN, model=layer)
    assert [e.dtype for op, e in traced.events if op.function in ("linear", "add")] == [
        "bfloat16",
        "bfloat16",
    ]
    with torch.no_grad():
        assert torch.equal(traced.output, program(x()))


# --- Coordinates of a value ---------------------------------------------------------------------------------------


def tokens(traced: Traced, event: Event) -> list[Any]:
    cells = traced.trace.resolve(event).cells
    assert cells is not None
    return [
        None if i < 0 or traced.table.tokens[i] is None else traced.table.tokens[i][1:]
        for i in cells.ids.tolist()
    ]


def test_a_value_has_a_digest_for_every_column():
    traced = Traced(lambda x: x * 2, {"x": x(2, 3, 5)}, left_padded(2, 3))
    event = traced.event("(model)/mul")
    assert tokens(traced, event) == [None, (0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert event.width == 5


def test_several_rows_of_one_token_are_one_cell():
    def program(x: Tensor) -> Tensor:
        return torch.cat([x, x + 1], 1)

    traced = Traced(program, {"x": x(1, 3, 7)}, PLAIN)
    event = traced.event("(model)/cat")
    assert tokens(traced, event) == [(0, 0), (0, 1), (0, 2)]
    assert np.asarray(event.width).tolist() == [14, 14, 14]


def test_the_rows_of_a_token_have_the_digest_that_they_would_have_as_one():
    """Heads of one token in any order of dimensions, as a decoding step packs them."""
    value = x(1, 3, 8)
    traced = Traced(
        lambda x: (x.view(1, 3, 2, 4).transpose(1, 2).contiguous(), torch.cat([x[..., :4], x[..., 4:]], 1)),
        {"x": value}, PLAIN,
    )  # fmt: skip
    assert held(traced, traced.event("(model)/contiguous")) == digests(value)
    assert held(traced, traced.event("(model)/cat")) == digests(value)


def test_a_loss_belongs_to_all_its_tokens_and_a_constant_to_none():
    traced = Traced(lambda x: x.sum() + torch.ones(4).sum(), {"x": x(1, 3, 7)}, PLAIN)
    whole = traced.event("(model)/ones").cells
    assert whole is not None
    assert whole.ids.tolist() == [-2]
    (pooled,) = traced.event("(model)/sum").cells.ids.tolist()
    assert len(traced.table.members[pooled]) == 3


def test_attention_weights_have_a_digest_for_the_keys_up_to_the_query_and_one_for_those_after_it():
    traced = Traced(lambda x: x @ x.mT, {"x": x(1, 3, 5)}, PLAIN)
    event = traced.event("(model)/matmul")
    assert event.cells is not None
    assert event.cells.kind == "pair"
    assert event.digests is not None
    assert event.digests.shape == (3, 2)
    # how many keys up to it and the sum of their positions, and the same after it
    assert event.cells.keys.tolist() == [[1, 0, 2, 3], [2, 1, 1, 2], [3, 3, 0, 0]]


def test_a_table_as_long_as_the_tokens_is_open_along_them():
    traced = Traced(lambda x: torch.ones(3, 4) * 2, {"x": x(1, 3, 5)}, PLAIN)
    cells = traced.event("(model)/mul").cells
    assert cells is not None
    assert (cells.kind, cells.open_dims, cells.open_sizes) == ("open", (0,), (3,))


def test_token_ids_labels_and_masks_have_the_tokens_of_their_columns():
    ids = torch.tensor([[0, 4, 5], [6, 7, 8]])
    given = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": ids,
        "weights": torch.ones(2, 3, 1),
    }
    traced = Traced(lambda **inputs: inputs["input_ids"] + 1, given)
    for name in given:
        assert tokens(traced, traced.event(f"(model)/input:{name}")) == [
            None,
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
            (1, 2),
        ]


def test_a_result_of_the_call_s_own_shape_has_its_tokens_though_a_tap_lost_them():
    traced = Traced(lambda x: torch.from_numpy(x.numpy().copy()), {"x": x(2, 3, 5)}, left_padded(2, 3))
    label = traced.recorder.label_of_result(traced.output, 0)
    assert label is not None
    assert label.q.shape == (2, 3, 1)
