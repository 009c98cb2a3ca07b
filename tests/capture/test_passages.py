"""A trace that takes over passages says what a trace says that works out every entry by itself."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.passages import assert_same, assert_same_labels, both, counted, forget, step_by_step
from tests.corpus import models
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from forkpoint import Run
from forkpoint.capture import history, tape
from forkpoint.capture.marks import Frame
from forkpoint.explain.session import trace_run

IDS = torch.tensor([[5, 9, 11, 7, 23, 4, 8], [0, 0, 6, 3, 31, 12, 9]])
MASK = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
PROMPT = {"input_ids": IDS, "attention_mask": MASK}
STEPS = [
    {**PROMPT, "use_cache": True},
    *(
        {"input_ids": IDS[:, n : n + 1], "attention_mask": torch.cat([MASK, torch.ones(2, n + 1)], 1)}
        for n in (0, 1)
    ),
]

MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "llama": (lambda: models.llama(num_hidden_layers=5), PROMPT),
    "llama, eager": (lambda: models.llama("eager", num_hidden_layers=5), PROMPT),
    "llama, decoding": (lambda: models.llama(num_hidden_layers=5), STEPS),
    "mixtral": (lambda: models.mixtral(num_hidden_layers=4), PROMPT),
    "mistral with a window": (lambda: models.mistral(num_hidden_layers=4), PROMPT),
    "gpt2": (lambda: models.gpt2(n_layer=4), PROMPT),
    "bert": (lambda: models.bert(num_hidden_layers=4), PROMPT),
    "mamba": (models.mamba, {"input_ids": IDS}),
    "t5": (models.t5, {**PROMPT, "decoder_input_ids": IDS[:, :4]}),
}


def check(run: Run, least: int = 1) -> None:
    slow, fast, taken = both(run)
    assert taken >= least
    for one in fast:
        assert_same(slow.trace, one.trace)
        assert_same_labels(slow, one)


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    build, inputs = MODELS[name]
    check(Run(build(), inputs))


@pytest.mark.parametrize("room", [1, 3_000, 20_000, 60_000])
@pytest.mark.parametrize("name", ["llama, eager", "llama, decoding", "mixtral"])
def test_wherever_the_tape_is_read(name, room, monkeypatch):
    monkeypatch.setitem(tape.PENDING_BYTES, "cpu", room)
    monkeypatch.setattr(tape, "ENTRY_BYTES", 0)
    build, inputs = MODELS[name]
    check(Run(build(), inputs))


def test_a_second_run_is_taken_over_but_for_its_beginning():
    run = Run(models.llama(num_hidden_layers=3), PROMPT)
    forget()
    trace_run(run)
    with counted() as taken:
        trace = trace_run(run).trace
    functions = sum(not op.is_boundary for op in trace.ops)
    assert sum(taken) > functions


def test_layers_are_taken_over_in_the_first_run():
    forget()
    with counted() as taken:
        trace_run(Run(models.llama(num_hidden_layers=6), PROMPT))
    assert len([length for length in taken if length > 50]) >= 5


# ---------------------------------------------------------------------- what differs from layer to layer


class Layers(nn.Module):
    """The same function, layer after layer, each with its number."""

    def __init__(self, function: Callable[[Tensor, int], Tensor], count: int = 12, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(function, number, width) for number in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor, int], Tensor], number: int, width: int) -> None:
        super().__init__()
        self.function, self.number = function, number
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x)) * 2
        y = self.function(y, self.number)
        return x + self.down(y)


X = torch.linspace(-1, 1, 2 * 5 * 4).reshape(2, 5, 4)


def run_of(function: Callable[[Tensor, int], Tensor], x: Tensor = X, **given: Any) -> Run:
    torch.manual_seed(0)
    return Run(Layers(function).eval(), {"x": x}, **given)


def test_numbers_that_differ():
    check(run_of(lambda y, number: y + number))
    check(run_of(lambda y, number: y.roll(number % 3, 1)))


def test_true_is_not_one():
    check(run_of(lambda y, number: y + y[:, (True, 1)[number % 2]].sum()))


def test_sizes_that_depend_on_values():
    def pick(y: Tensor, number: int) -> Tensor:
        kept = (y > number / 6 - 1).nonzero()
        return y + kept.sum()

    check(run_of(pick))


def test_shapes_that_differ():
    check(run_of(lambda y, number: y + y[:, : 1 + number % 4].sum(1, keepdim=True)))


def test_a_list_that_grows_after_the_call():
    def grow(y: Tensor, number: int, held: list[Tensor] = []) -> Tensor:  # noqa: B006
        if number == 0:
            held.clear()
        held.append(y)
        together = torch.cat(held, 1)
        return y + together.mean(1, keepdim=True)

    check(run_of(grow))


def test_outputs_of_which_there_are_several():
    def several(y: Tensor, number: int) -> Tensor:
        values, places = torch.topk(y, 2, dim=-1)
        left, right = torch.split(y, 2, dim=-1)
        return y + values.sum() + places.sum() * number + torch.cat([right, left], -1)

    check(run_of(several))


def test_writes_in_place():
    def write(y: Tensor, number: int) -> Tensor:
        y[:, number % 5] = 1
        y.mul_(2)
        return torch.add(y, 1, out=torch.empty_like(y))

    check(run_of(write))


def test_a_write_that_nobody_sees():
    def write(y: Tensor, number: int) -> Tensor:
        z = y * 3
        if number == 7:
            w = z * 2
            with torch._C.DisableTorchFunction():
                z.add_(1)
            return z + w
        return z + z * 2

    run = run_of(write)
    check(run)
    skipped = [event for event in trace_run(run).trace.events if event.status == "skipped"]
    assert [event.reason for event in skipped] == ["overwritten before it could be read"]


def test_what_is_written_right_after_a_function_returned_is_its_value():
    def write(y: Tensor, number: int) -> Tensor:
        z = y * 3
        with torch._C.DisableTorchFunction():
            z.add_(number)
        return z + 1

    run = run_of(write)
    check(run)
    assert not any(event.status == "skipped" for event in trace_run(run).trace.events)


def test_a_module_that_is_called_again():
    shared = nn.Linear(4, 4)
    check(run_of(lambda y, _: shared(y) + shared(y)))


def test_modules_made_for_one_call():
    check(run_of(lambda y, _: nn.SiLU()(y)))


def test_inference_mode():
    def without_versions(model: nn.Module, inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{name: value + 0 for name, value in inputs.items()})

    check(run_of(lambda y, _: y * 2, call=without_versions))


def test_vmap_inside_a_layer():
    check(run_of(lambda y, number: torch.vmap(lambda row: row * number)(y) + 1))


def test_an_error_leaves_nothing_behind():
    def fail(y: Tensor, number: int) -> Tensor:
        if number == 9:
            raise RuntimeError("ninth")
        return y

    forget()
    with pytest.raises(RuntimeError, match="ninth"):
        trace_run(run_of(fail))
    check(run_of(lambda y, _: y * 2))


def test_sparse_tensors_in_some_layers():
    def scatter(y: Tensor, number: int) -> Tensor:
        table = torch.eye(5)
        table = table.to_sparse() if number % 4 == 3 else table * 1
        return torch.stack([torch.mm(table, row) for row in y])

    check(run_of(scatter))


def test_an_in_place_flag_that_is_off_is_no_write():
    forget()
    with counted() as taken:
        trace_run(run_of(lambda y, _: torch.nn.functional.relu(y, inplace=False)))
    assert taken


def test_no_value_is_held_when_the_run_is_over():
    run = run_of(lambda y, _: y * 2)
    traced = trace_run(run)
    held = traced.recorder.tape
    assert not any((held.whats, held.places, held.args, held.kwargs, held.made, held.befores))
    assert not held.pending
    assert held.last.numel() == 0


class Twice(nn.Module):
    """Gives a view of what it takes, twice."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        view = x.transpose(1, 2)
        return {"one": view, "other": view}


def test_a_view_that_leaves_a_module_twice():
    twice = Twice()
    check(run_of(lambda y, _: y + twice(y)["other"].transpose(1, 2)))


def test_a_tensor_without_a_row_that_goes_in_twice():
    queries, bilinear = nn.Parameter(torch.ones(1, 4)), nn.Bilinear(4, 4, 4)

    class Queries(nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return bilinear(one, other)

    module = Queries()
    check(run_of(lambda y, _: y + module(queries, queries)))


class Tree(nn.Module):
    """A module whose children are of its own class."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.children_ = nn.ModuleList(Tree(depth - 1) for _ in range(2)) if depth else nn.ModuleList()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children_:
            x = child(x)
        return torch.tanh(self.linear(x)) * 2 + 1


def test_the_model_is_of_the_class_of_its_modules():
    check(Run(Tree(3), {"x": X}, call=lambda model, given: model(given["x"])))


def test_steps_that_did_not_follow_each_other():
    held: list[nn.Module] = []

    def mixed(y: Tensor, number: int) -> Tensor:
        if number == 0:
            held[:] = [nn.Identity(), nn.Dropout(0.5).eval()]
        y = held[number % 2](y.contiguous())
        if number % 3 == 1:
            y = (y * 1).mul_(2)
        return held[(number + 1) % 2](y.float()).contiguous()

    check(run_of(mixed))


def test_conjugate_views_in_some_layers():
    def turn(y: Tensor, number: int) -> Tensor:
        z = torch.view_as_complex(y.reshape(2, 5, 2, 2).contiguous())
        z = (z.conj() if number % 2 else z * 1).resolve_conj()
        return torch.view_as_real(z).reshape(2, 5, 4)

    check(run_of(turn))


def ids_of(function: Callable[[Tensor], Tensor], name: str) -> list[int]:
    forget()
    trace = trace_run(Run(nn.Identity(), {"x": X}, call=lambda _, given: function(given["x"]))).trace
    (event,) = [event for event in trace.events if trace.ops[event.op].function == name and event.cells]
    assert event.cells is not None
    return event.cells.ids.tolist()


def test_arguments_are_what_they_were_at_the_call():
    class Kept(list):
        """No plain list."""

    def index(x: Tensor) -> Tensor:
        order = [4, 3, 2, 1, 0]
        y = x[:, order] * 1
        order.reverse()
        return y

    def join(x: Tensor) -> Tensor:
        parts = Kept([x[:, 2:], x[:, :2]])
        y = torch.cat(parts, 1)
        parts.reverse()
        return y

    assert ids_of(index, "mul") == [5, 4, 3, 2, 1, 10, 9, 8, 7, 6]
    assert ids_of(join, "cat") == [3, 4, 5, 1, 2, 8, 9, 10, 6, 7]


def skipped(function: Callable[[Tensor], Tensor]) -> list[str]:
    forget()
    trace = trace_run(Run(nn.Identity(), {"x": X}, call=lambda _, given: function(given["x"]))).trace
    return [trace.ops[event.op].name for event in trace.events if event.status == "skipped"]


def test_an_unseen_write_after_a_seen_one():
    def write(x: Tensor) -> Tensor:
        y = x * 2
        y.mul_(3)
        z = y + 1
        with torch._C.DisableTorchFunction():
            y.add_(1)
        return z * y

    assert skipped(write) == ["(model)/mul_"]


def test_a_tensor_whose_data_are_replaced_was_what_it_was():
    def replace(x: Tensor) -> Tensor:
        y = x * 2
        z = y + 1
        y.data = torch.zeros(1)
        return z

    forget()
    trace = trace_run(Run(nn.Identity(), {"x": X}, call=lambda _, given: replace(given["x"]))).trace
    assert [event.shape for event in trace.events if trace.ops[event.op].function == "mul"] == [(2, 5, 4)]


@pytest.mark.parametrize("room", [1, 100, 400])
def test_no_digest_is_taken_inside_a_gradient(room, monkeypatch):
    monkeypatch.setitem(tape.PENDING_BYTES, "cpu", room)

    def differentiate(y: Tensor, number: int) -> Tensor:
        weights = (y @ y.transpose(1, 2)).softmax(-1) @ y
        slope = torch.func.grad(lambda z: (z * z * number).sum())(weights)
        return y + slope

    check(run_of(differentiate), least=0)


@pytest.mark.usefixtures("few_objects")
def test_what_a_model_left_goes_with_it():
    def frames() -> int:
        gc.collect()
        return sum(type(held) is Frame for held in gc.get_objects())

    trace_run(run_of(lambda y, _: y * 2))
    before = frames()
    for _ in range(3):
        trace_run(run_of(lambda y, _: y * 2))
    assert frames() <= before


# ---------------------------------------------------------------------- what differs from run to run


def pair(one: Run, other: Run) -> None:
    """Two runs of one layout, the second after the first, as when each is traced by itself."""
    with step_by_step():
        forget()
        slow = [trace_run(one), trace_run(other)]
    forget()
    fast = [trace_run(one), trace_run(other)]
    for before, now in zip(slow, fast, strict=True):
        assert_same(before.trace, now.trace)


def test_autocast_in_one_run():
    def autocast(model: nn.Module, inputs: dict[str, Any]) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**inputs)

    pair(run_of(lambda y, _: y * 2), run_of(lambda y, _: y * 2, call=autocast))


def test_other_strides():
    transposed = X.transpose(1, 2).contiguous().transpose(1, 2)
    pair(run_of(lambda y, _: y * 2), run_of(lambda y, _: y * 2, transposed))


def test_another_kernel_for_attention():
    def attend(y: Tensor, _: int) -> Tensor:
        heads = y.reshape(2, 5, 2, 2).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return mixed.transpose(1, 2).reshape(2, 5, 4)

    def plain(model: nn.Module, inputs: dict[str, Any]) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return model(**inputs)

    pair(run_of(attend), run_of(attend, call=plain))


def test_weights_of_another_dtype():
    run, half = run_of(lambda y, _: y * 2), run_of(lambda y, _: y * 2, X.half())
    half.model.half()
    pair(run, half)


def test_layers_that_were_put_elsewhere():
    run = run_of(lambda y, number: y * number)
    forget()
    trace_run(run)
    layers = run.model.layers
    layers[3], layers[4] = layers[4], layers[3]
    now = trace_run(run)
    with step_by_step():
        forget()
        assert_same(trace_run(run).trace, now.trace)


# ---------------------------------------------------------------------- any program

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda y: y + 1,
    "transpose": lambda y: y.transpose(1, 2).contiguous().transpose(1, 2),
    "roll": lambda y: y.roll(1, 1),
    "reverse": lambda y: y.flip(1),
    "softmax": lambda y: y.softmax(-1),
    "attention": lambda y: (y @ y.transpose(1, 2)).softmax(-1) @ y,
    "split": lambda y: torch.cat(y.chunk(2, -1)[::-1], -1),
    "mean": lambda y: y - y.mean(1, keepdim=True),
    "arange": lambda y: y + torch.arange(y.shape[1])[None, :, None],
    "in place": lambda y: (y * 1).mul_(2),
    "index": lambda y: y[:, torch.tensor([4, 2, 0, 1, 3])],
    "linear": lambda y: torch.nn.functional.linear(y, torch.eye(4)),
}


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(OPS)), min_size=1, max_size=5),
    odd=st.sampled_from(sorted(OPS)),
    period=st.integers(2, 5),
    room=st.sampled_from([1, 1 << 11, 1 << 14, 1 << 25]),
)
def test_programs(names, odd, period, room):
    def function(y: Tensor, number: int) -> Tensor:
        for name in names:
            y = OPS[name](y)
        return OPS[odd](y) if number % period == 0 else y

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tape.PENDING_BYTES, "cpu", room)
        patch.setattr(tape, "ENTRY_BYTES", 0)
        patch.setattr(history, "SHORTEST", 6)
        slow, fast, _ = both(run_of(function))
    for one in fast:
        assert_same(slow.trace, one.trace)
        assert_same_labels(slow, one)
